# docker build -t wxopenid .
# docker run -d --name wxopenid --restart unless-stopped --stop-timeout 15 --read-only --env-file .env -p 2020:2020 wxopenid

# The Debian image, not -alpine: it has git, for the revision that -version prints.
FROM golang:1.26 AS build
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /wxopenid .

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /wxopenid /
# A number, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 65532:65532
EXPOSE 2020
HEALTHCHECK --interval=10s --timeout=5s CMD ["/wxopenid", "-healthy"]
ENTRYPOINT ["/wxopenid"]
