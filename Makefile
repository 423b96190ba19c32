# make lists the targets.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
ACTIONLINT = github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
MINIPROGRAM = -p typescript@5.9.3 -p miniprogram-api-typings@5.2.3 -p miniprogram-compiler@0.2.3
OPENAPI = -p @redocly/cli@1.34.15 -p @seriousme/openapi-schema-validator@2.11.0
FUZZTIME = 2m

.SILENT:
.PHONY: help run sandbox build dist test lint check bench cold flood rolling failover fuzz

help: ## list the targets
	awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

run: build ## build and start the service
	./wxopenid

sandbox: ## start the service with a fake WeChat
	go run . -sandbox

build: ## build the static binary ./wxopenid
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o wxopenid .

# Made in a clone of the last commit: here Go would build in untracked files, or call the version +dirty. Exported is
# what would change the bytes otherwise: Go's settings, and the time zone, which gets into a zip.
dist: ## write the archives of a release to dist/, from the last commit
	if git status --porcelain -uno | grep .; then \
	  echo 'make dist takes the last commit: commit these files first, or undo the changes.' >&2; exit 1; fi
	rm -rf dist
	git clone -q -c advice.detachedHead=false . dist/src
	cd dist/src; export TZ=UTC0 CGO_ENABLED=0 GOWORK=off GOFLAGS=-buildvcs=true GOAMD64=v1 GOARM64=v8.0; \
	for GOOS in linux darwin windows; do for GOARCH in amd64 arm64; do export GOOS GOARCH; \
	  case $$GOOS in \
	    windows) ext=zip own="--add-file=wxopenid.exe \
	      --add-file=deploy/windows/sandbox.cmd --add-file=deploy/windows/run.cmd" ;; \
	    *) ext=tar.gz own='--add-file=wxopenid deploy' ;; \
	  esac; \
	  go build -trimpath -ldflags='-s -w' . && \
	  git -c tar.umask=022 archive -o ../wxopenid_$${GOOS}_$$GOARCH.$$ext --prefix=wxopenid/ HEAD \
	    LICENSE SECURITY.md .env.example README.md README.zh-CN.md docs miniprogram examples $$own || exit; \
	done; done
	rm -rf dist/src
	cd dist && sha256sum wxopenid_* > SHA256SUMS

test: ## run the tests, with the race detector where there is a C compiler
	go test $$([ "$$(go env CGO_ENABLED)" = 0 ] || echo -race) ./...

lint: ## run the linters
	! gofmt -d . | grep .
	go vet ./...
	go fix -diff ./...
	go run $(STATICCHECK) ./...
	go run $(ACTIONLINT) .github/workflows/*.yml
	command -v npx >/dev/null || { echo 'npx is not on PATH: miniprogram and docs/openapi.json are not checked'; exit 0; }; \
	npx -y $(MINIPROGRAM) -c 'modules="$$(dirname "$$(command -v tsc)")/.." && types="$$(mktemp -d)" && \
	  tsc --allowJs --checkJs --strict --target es2015 --lib es2015 --module commonjs \
	    --typeRoots "$$modules" --types miniprogram-api-typings --declaration --emitDeclarationOnly --removeComments \
	    --rootDir miniprogram --outDir "$$types" miniprogram/*.js miniprogram/pages/*/*.js && \
	  diff miniprogram/openid.d.ts "$$types/openid.d.ts" && rm -r "$$types" && \
	  NODE_PATH="$$modules" node -e "const c = require(\"miniprogram-compiler\"); c.wxmlToJs(\"miniprogram\"); c.wxssToJs(\"miniprogram\")"' && \
	REDOCLY_TELEMETRY=off npx -y $(OPENAPI) -c 'redocly lint --skip-rule operation-4xx-response docs/openapi.json && \
	  validate-api docs/openapi.json'

check: test lint ## test and lint

bench: ## measure the CPU time of a login beside the leanest net/http loop: 1 minute, Linux
	sh measure/measure.sh bench

cold: ## 1,000 callers on a cold start, with all cores and with a fifth of one: 3 minutes, root, Linux
	sh measure/measure.sh cold

flood: ## floods within the memory of deploy/kubernetes.yaml: 1 minute, root, Linux
	sh measure/measure.sh flood

rolling: ## restarts behind nginx, haproxy and caddy, those on PATH: 2 minutes, root, Linux
	sh measure/measure.sh rolling

failover: ## a base URL that dies or freezes under load: 2 minutes, Linux
	sh measure/measure.sh failover

fuzz: ## fuzz requests and WeChat's replies, FUZZTIME each
	go test -run '^$$' -fuzz FuzzRequest -fuzztime $(FUZZTIME) -fuzzminimizetime 10x .
	go test -run '^$$' -fuzz FuzzReply -fuzztime $(FUZZTIME) -fuzzminimizetime 10x .
