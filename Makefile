# make lists the targets.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
MINIPROGRAM = -p typescript@5.9.3 -p miniprogram-api-typings@5.2.3 -p miniprogram-compiler@0.2.3
FUZZTIME = 2m

.SILENT:
.PHONY: help run sandbox build test lint check bench cold flood rolling failover fuzz

help: ## list the targets
	awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

# .env is read line by line and never run as shell code: that would execute a $(command) in it and print what it
# cannot parse. A variable that the environment already has is kept.
run: build ## start the service with the settings in .env
	LC_ALL=C; bom=$$(printf '\357\273\277'); cr=$$(printf '\r'); n=0; set --; \
	if [ -e .env ]; then while read -r line || [ -n "$$line" ]; do \
	  n=$$((n + 1)); line=$${line#"$$bom"}; line=$${line%"$$cr"}; line=$${line#export }; name=$${line%%=*}; \
	  case $$line in ''|'#'*) continue ;; esac; \
	  case $$name in "$$line"|''|[0-9]*|*[!A-Za-z0-9_]*) \
	    echo ".env, line $$n: write NAME=value, or # and a comment, as UTF-8 text" >&2; exit 2 ;; esac; \
	  printenv "$$name" >/dev/null || set -- "$$@" "$$line"; \
	done < .env; else echo 'There is no .env: copy .env.example to .env, or set the variables yourself' >&2; fi; \
	for line do export "$$line"; done; exec ./wxopenid

sandbox: ## start the service with a fake WeChat
	go run . -sandbox

build: ## build the static binary ./wxopenid
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o wxopenid .

test: ## run the tests, with the race detector where there is a C compiler
	go test $$([ "$$(go env CGO_ENABLED)" = 0 ] || echo -race) ./...

lint: ## run the linters
	! gofmt -d . | grep .
	go vet ./...
	go fix -diff ./...
	go run $(STATICCHECK) ./...
	command -v npx >/dev/null || { echo 'npx is not on PATH: miniprogram is not checked'; exit 0; }; \
	npx -y $(MINIPROGRAM) -c 'modules="$$(dirname "$$(command -v tsc)")/.." && types="$$(mktemp -d)" && \
	  tsc --allowJs --checkJs --strict --target es2015 --lib es2015 --module commonjs \
	    --typeRoots "$$modules" --types miniprogram-api-typings --declaration --emitDeclarationOnly --removeComments \
	    --rootDir miniprogram --outDir "$$types" miniprogram/*.js miniprogram/pages/*/*.js && \
	  diff miniprogram/openid.d.ts "$$types/openid.d.ts" && rm -r "$$types" && \
	  NODE_PATH="$$modules" node -e "const c = require(\"miniprogram-compiler\"); c.wxmlToJs(\"miniprogram\"); c.wxssToJs(\"miniprogram\")"'

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
