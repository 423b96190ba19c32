# make lists the targets.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

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

check: lint test ## lint and test

bench: ## compare with a lean loop and with the usual tutorial
	go test -run '^$$' -bench . -benchtime 1x -timeout 30m .

fuzz: ## fuzz requests and WeChat's replies, FUZZTIME each
	go test -run '^$$' -fuzz FuzzRequest -fuzztime $(FUZZTIME) .
	go test -run '^$$' -fuzz FuzzReply -fuzztime $(FUZZTIME) .

FUZZTIME = 2m

.PHONY: help run sandbox build test lint check bench fuzz
