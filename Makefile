# SPDX-License-Identifier: Apache-2.0

GO      ?= go
CACHE   := $(CURDIR)/.cache
TOOLS   := $(CACHE)/bin
BIN     := $(CURDIR)/bin
# Tools of fixed versions: generated code must come out the same everywhere.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.5.0
PROTOC_GO     := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.10
PROTOC_GRPC   := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
BENCHSTAT     := golang.org/x/perf/cmd/benchstat@v0.0.0-20250918210140-2eb4bb3c2f22
FUZZTIME ?= 20s
BENCHCOUNT ?= 1
TESTFLAGS ?=
# Which CRIU agents and tests run.
export REHOME_CRIU ?= $(CACHE)/criu/criu

.PHONY: all build demo test test-race test-kernels bench fuzz lint generate check-generated check-clean deps clean

all: build

build: ## the one static binary, bin/rehome
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/rehome ./cmd/rehome

demo: deps-demo build ## the main job on real traffic, in network namespaces
	$(BIN)/rehome lab run live-migration --migrations 20
	$(BIN)/rehome lab run dispatch
	$(BIN)/rehome lab run media
	@if [ -x $(REHOME_CRIU) ]; then set -x; $(BIN)/rehome lab run process --migrations 10; else echo "lab run process: left out, there is no CRIU"; fi

.PHONY: deps-demo deps-test deps-criu deps-generate
deps-demo: deps-criu
	@.ci/apt curl nginx-light redis-server redis-tools wrk openssl sip-tester ffmpeg vsftpd lftp dnsmasq-base bind9-dnsutils nftables

deps-test: deps-criu
	@.ci/apt curl wget python3 netcat-openbsd nginx-light haproxy redis-server redis-tools wrk openssl sip-tester ffmpeg vsftpd lftp dnsmasq-base bind9-dnsutils nftables gcc libc6-dev

deps-criu: ## the machine's CRIU where it is new enough, else Debian unstable's, not installed
	@.ci/criu $(CACHE)/criu >/dev/null || true

deps-generate:
	@.ci/apt clang llvm libbpf-dev protobuf-compiler

test: deps-test build ## everything; needs root for what needs the kernel
	$(GO) vet ./...
	@mkdir -p $(CACHE); .ci/leftovers > $(CACHE)/before
	REHOME=$(BIN)/rehome $(GO) test -p 3 -parallel 3 -exec $(CURDIR)/.ci/turn -timeout 30m $(TESTFLAGS) ./...
	@.ci/leftovers | grep -vxF -f $(CACHE)/before > $(CACHE)/left || true
	@if [ -s $(CACHE)/left ]; then echo "the tests left behind:"; cat $(CACHE)/left; exit 1; fi

test-race: deps-test build
	REHOME=$(BIN)/rehome $(GO) test -race -p 1 -timeout 60m $(TESTFLAGS) ./...

test-kernels: deps-criu build ## what depends on the kernel, under others in virtual machines: some 15 minutes for each; not part of test
	.ci/kernels $(KERNELS)

bench: deps-test build ## Go benchmark format, for benchstat; docs/benchmarks.md says what is what
	REHOME=$(BIN)/rehome REHOME_LIBSOCCR=$$(.ci/libsoccr $(CACHE)/libsoccr) $(GO) test -run '^$$' -bench . -benchmem -count $(BENCHCOUNT) -timeout 60m ./...

fuzz: ## every fuzz target for FUZZTIME
	@.ci/fuzz $(FUZZTIME)

lint: $(TOOLS)/golangci-lint
	$(TOOLS)/golangci-lint run ./...

$(TOOLS)/golangci-lint:
	GOBIN=$(TOOLS) $(GO) install $(GOLANGCI_LINT)

$(TOOLS)/protoc-gen-go:
	GOBIN=$(TOOLS) $(GO) install $(PROTOC_GO)

$(TOOLS)/protoc-gen-go-grpc:
	GOBIN=$(TOOLS) $(GO) install $(PROTOC_GRPC)

generate: deps-generate $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc ## BPF objects and gRPC code
	PATH=$(TOOLS):$$PATH $(GO) generate ./...

# The figures of docs/plots are checked by a test, which draws them.
check-generated: deps-generate $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc ## committed generated code is what its sources make
	PATH=$(TOOLS):$$PATH $(GO) generate -skip 'go run \. ' ./...
	git diff --exit-code --stat
	$(GO) mod tidy -diff

clean:
	rm -rf $(BIN) $(CACHE)
