# make lists the targets.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
MINIPROGRAM = -p typescript@5.9.3 -p miniprogram-api-typings@5.2.3 -p miniprogram-compiler@0.2.3

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

run: ## start the service with the settings in .env
	set -a; if [ -f .env ]; then . ./.env; fi; exec go run .

sandbox: ## start the service with a fake WeChat
	go run . -sandbox

build: ## build the static binary ./wxopenid
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o wxopenid .

test: ## run the tests
	go test -race ./...

lint: ## run the linters
	test -z "$$(gofmt -l .)"
	go vet ./...
	test -z "$$(go fix -diff ./...)"
	go run $(STATICCHECK) ./...
	@command -v npx >/dev/null || { echo 'npx is not on PATH: miniprogram is not checked'; exit 0; }; \
	npx -y $(MINIPROGRAM) -c 'modules="$$(dirname "$$(command -v tsc)")/.." && \
	  tsc --noEmit --allowJs --checkJs --strict --noImplicitAny false --target es2015 --lib es2015 --module commonjs \
	    --typeRoots "$$modules" --types miniprogram-api-typings miniprogram/app.js miniprogram/pages/*/*.js && \
	  NODE_PATH="$$modules" node -e "const c = require(\"miniprogram-compiler\"); c.wxmlToJs(\"miniprogram\"); c.wxssToJs(\"miniprogram\")"'

check: lint test ## lint and test

bench: ## compare with a lean loop and with the usual tutorial
	go test -run '^$$' -bench . -benchtime 1x -timeout 30m .

stress: ## the real tools and faults: load, slowhttptest, nginx, lost descriptors
	STRESS=1 go test -run TestStress -v -timeout 30m .

soak: ## run against the sandbox for SOAK and look for leaks
	SOAK=$(SOAK) go test -run TestSoak -v -timeout 0 .

fuzz: ## fuzz requests and WeChat's replies, FUZZTIME each
	go test -run '^$$' -fuzz FuzzRequest -fuzztime $(FUZZTIME) -fuzzminimizetime 10x .
	go test -run '^$$' -fuzz FuzzReply -fuzztime $(FUZZTIME) -fuzzminimizetime 10x .
	go test -run '^$$' -fuzz FuzzRawReply -fuzztime $(FUZZTIME) -fuzzminimizetime 10x .

FUZZTIME = 2m
SOAK = 10m

.PHONY: help run sandbox build test lint check bench stress soak fuzz
