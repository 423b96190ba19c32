# Each release has an image for linux/amd64 and linux/arm64, ghcr.io/OWNER/wxopenid. To build it yourself (on an Apple
# computer for a server, with --platform linux/amd64):
#   docker build -t wxopenid .
#   docker run -d --name wxopenid --restart unless-stopped --stop-timeout 15 --read-only \
#     --memory 512m -e GOMEMLIMIT=448MiB --env-file .env -p 127.0.0.1:2020:2020 wxopenid
# The sandbox needs an ADDR that can be reached from outside the container:
#   docker run --rm -e ADDR=:2020 -p 127.0.0.1:2020:2020 wxopenid -sandbox
# Docker before 23 needs DOCKER_BUILDKIT=1 to build it. With buildah or podman, --format docker keeps the HEALTHCHECK;
# buildah 1.28 also needs --build-arg BUILDPLATFORM=linux/amd64 to build for another platform. Where Docker Hub is out
# of reach, name a mirror below, as in mirror.example.com/library/golang:1.26. TZ has no effect in an image from
# scratch: the log is in UTC.

# Go runs on the machine that builds and compiles for the one that runs the image: no emulation. The Debian image and
# not -alpine: it has git, for the version that -version prints.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY . .
ARG TARGETOS TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags='-s -w' -o /wxopenid .

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /wxopenid /
# A number: Kubernetes' runAsNonRoot cannot tell whether a name is root.
USER 65532:65532
EXPOSE 2020
HEALTHCHECK --interval=10s --timeout=5s CMD ["/wxopenid", "-healthy"]
ENTRYPOINT ["/wxopenid"]
