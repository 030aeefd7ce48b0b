# natless: `make help` lists what there is to make. Building and testing need
# Go, git and make; nothing here needs root unless it says so.

PREFIX  ?= /usr/local
DESTDIR ?=

# FUZZTIME is per target. BENCH says which benchmarks, COUNT how often each:
# benchstat wants six or more.
BENCH ?= .
COUNT ?= 6

# sudo forgets where Go is; its usual places come last.
export PATH := $(PATH):/usr/local/go/bin:/usr/lib/go/bin:/snap/bin
GO ?= go
export GO

VERSION ?= $(shell scripts/version)
STATIC   = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)'

.DEFAULT_GOAL := build
.PHONY: build test unit lint fuzz bench demo install uninstall clean help need-go

build: need-go ## build bin/natless, one static binary
	@mkdir -p bin
	$(STATIC) -o bin/natless ./cmd/natless
	@scripts/give-back bin bin/natless

test: build ## lint, all tests (as root those in namespaces too), each fuzz target for FUZZTIME (5s)
	@scripts/tell-skips scripts/test $(or $(FUZZTIME),5s)

unit: need-go ## the tests that need no namespaces
	@scripts/tell-skips scripts/unit -short ./...

lint: need-go ## gofmt, go vet, staticcheck, go mod tidy, import arrows
	@scripts/lint

fuzz: need-go ## each fuzz target for FUZZTIME (1m)
	@scripts/fuzz $(or $(FUZZTIME),1m)

bench: need-go ## benchmarks of the code, for benchstat (BENCH, COUNT); scripts/bench-peers compares with peers
	@$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./...

demo: build ## the whole thing in throwaway namespaces (root, or user namespaces)
	@bin/natless lab demo

install: ## install bin/natless and what goes with it under DESTDIR, PREFIX (/usr/local)
	@[ -x bin/natless ] || $(MAKE) build
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' scripts/install

uninstall: ## remove exactly what install put there
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' scripts/uninstall

clean: ## remove bin
	rm -rf bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

need-go:
	@command -v $(GO) >/dev/null || { \
	  echo 'natless: make: no go command in PATH: install Go (https://go.dev/dl)'; \
	  echo '  or, under sudo: sudo env "PATH=$$PATH" make $(MAKECMDGOALS)'; \
	  exit 1; } >&2
