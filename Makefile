# banger: two commands matter, `make run` and `make test`. Everything else they need, they do by themselves.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PREFIX   ?= $(if $(filter 0,$(shell id -u)),/usr/local,$(HOME)/.local)
ARGS     ?=
AGENT    := internal/agentbin/dist/banger-agent
STATIC   := CGO_ENABLED=0 $(GO) build -trimpath
LDFLAGS  := -s -w -X banger/internal/version.version=$(VERSION)

.PHONY: run test build install uninstall lint generate bench smoke setup clean

## run: a microVM with a shell; ARGS are those of `banger vm run`
run: setup build
	@bin/banger vm run $(ARGS)

## test: everything CI checks: build, lint, unit tests with the race detector, real VMs, the smoke test
test: setup build lint
	@scripts/setup.sh --test
	scripts/test.sh

build: bin/banger

# Go's own cache decides what is stale, so both are always asked for.
.PHONY: bin/banger
bin/banger:
	@$(STATIC) -ldflags '-s -w' -o $(AGENT) ./cmd/banger-agent
	@$(STATIC) -ldflags '$(LDFLAGS)' -o $@ ./cmd/banger

install: build
	install -D -m 0755 bin/banger $(DESTDIR)$(PREFIX)/bin/banger

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/banger

lint:
	@unformatted=$$(gofmt -l cmd internal test bench); [ -z "$$unformatted" ] || { echo "not gofmt'ed: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

## bench: figures against the raw VMM floor; table on the terminal, JSON in bench/out
bench: setup build
	$(GO) run ./bench -banger bin/banger -out bench/out

smoke: build
	scripts/smoke.sh bin/banger

generate:
	scripts/generate.sh

setup:
	@scripts/setup.sh

clean:
	rm -rf bin bench/out $(AGENT)
