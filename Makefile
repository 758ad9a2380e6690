# CI and people use the same targets.

GO ?= go
# The program and all tests share compiled packages.
export GOFLAGS := $(filter-out -trimpath,$(GOFLAGS)) -trimpath
GOLANGCI_LINT = $(GO) tool -modfile=tools.mod golangci-lint

# Everything except the integration tests.
UNIT = $(shell $(GO) list ./... | grep -v /integration)
# Tests with a real containerd that also run with checkouts of hard links. By default all tests run with composefs if the
# kernel supports it.
HARDLINK = ^Test(Clients|DaemonKilled|EqualFilesStaySeparate|Garbage|Lost|Pull|Reboot|Repair|UserNamespace)$$
# Separate modules with code, for requirements that the product's go.mod must not have.
MODULES = integration/browser integration/script integration/tools/goerofs
LONGEST = ./integration ./integration/boot ./integration/kernel ./integration/sysroot ./integration/tenants ./objectstore/layer ./cmd/ostree-snapshotter
# Runs a command with a file system of its own for temporary files, as root. It becomes the command, so signals reach it.
SCRATCH = bin/scratch
FUZZTIME ?= 20s
BIN ?= bin/ostree-snapshotter
# Without a tag the program has the version that the Go tool makes of the commit.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null)
LDFLAGS = $(if $(VERSION),-ldflags '-X main.version=$(VERSION)')
RELEASED = amd64 arm64
OTHERS = s390x ppc64le riscv64
BENCH ?= .

.DEFAULT_GOAL := build
.PHONY: $(SCRATCH) build cross vuln test test-default test-modes slowest race lint fmt fuzz bench gobench bench-compare integration test-containerd demo clean help setup

build: ## the static binary, bin/ostree-snapshotter; VERSION is the release, by default the tag
	CGO_ENABLED=0 $(GO) build $(LDFLAGS) -o $(BIN) ./cmd/ostree-snapshotter

cross: ## compile for the released platforms, and for the others that should work
	@set -e; for arch in $(RELEASED); do \
	  echo "== $$arch"; CGO_ENABLED=0 GOARCH=$$arch $(GO) build -o /dev/null ./cmd/ostree-snapshotter; GOARCH=$$arch $(GO) vet ./...; \
	done
	@set -e; for arch in $(OTHERS); do \
	  echo "== $$arch"; CGO_ENABLED=0 GOARCH=$$arch $(GO) build -o /dev/null ./cmd/ostree-snapshotter; \
	done

vuln: ## known vulnerabilities that the code reaches, if their database can be reached
	@if out=$$($(GO) tool -modfile=tools.mod govulncheck ./... 2>&1); then echo "$$out"; \
	elif echo "$$out" | grep '^govulncheck: fetching vulnerabilities:'; then echo "== make vuln: nothing was checked"; \
	else echo "$$out"; exit 1; fi

setup: ## Debian packages, containerd, its clients and images for the tests; needs root the first time
	$(GO) run ./integration/setup

$(SCRATCH):
	$(GO) build -o $@ ./integration/scratch

# The longest packages start first, and the tests with other checkouts run beside them: many tests wait for a disk, a timer or
# another program. For a module of its own, Go's cache of test results does not know the binary: -count=1.
test: build setup $(SCRATCH) ## all tests: units, suites and, as root, with a real containerd
	OSTREE_SNAPSHOTTER_BINARY=$(CURDIR)/bin/ostree-snapshotter $(SCRATCH) $(MAKE) --no-print-directory -j2 test-default test-modes

test-default:
	$(GO) test -timeout 40m $(LONGEST) ./...
	$(GO) -C integration/script test -count=1 -timeout 5m ./...
	$(GO) -C integration/browser test -timeout 5m ./...

test-modes:
	OSTREE_SNAPSHOTTER_TEST_CHECKOUT=hardlink $(GO) test -timeout 40m -run '$(HARDLINK)' ./integration
	OSTREE_SNAPSHOTTER_TEST_CHECKOUT=composefs $(GO) test -p 1 -timeout 40m ./snapshotter/...

slowest: build setup $(SCRATCH) ## all tests once, with the time of each package and the slowest tests, and the processor time of both
	$(GO) build -o bin/slowest ./integration/slowest
	OSTREE_SNAPSHOTTER_BINARY=$(CURDIR)/bin/ostree-snapshotter $(SCRATCH) $(GO) test -json -count=1 -timeout 40m \
	  -exec '$(CURDIR)/bin/slowest -exec' $(LONGEST) ./... | bin/slowest

race: $(SCRATCH) ## units and suites with the race detector; needs gcc
	$(GO) run ./integration/setup gcc
	CGO_ENABLED=1 $(SCRATCH) $(GO) test -race -timeout 25m $(UNIT)

lint: ## golangci-lint, in the version of tools.mod
	$(GOLANGCI_LINT) run ./...
	@set -e; lint=$$($(GO) tool -modfile=tools.mod -n golangci-lint); for m in $(MODULES); do \
	  echo "== $$m"; (cd $$m && $(GO) vet ./... && "$$lint" run ./...); \
	done

fmt: ## format the source
	$(GOLANGCI_LINT) fmt ./...

fuzz: ## run each fuzz test for FUZZTIME (20s)
	@set -e; for pkg in $(UNIT); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
	  done; \
	done

bench: build setup ## compare snapshotters, into bench/results; BENCHFLAGS are flags of ostree-snapshotter bench
	$(GO) run ./bench/run $(if $(BENCHKEEP),-keep) -- $(BENCHFLAGS)

gobench: setup ## run the Go benchmarks that match BENCH, BENCHCOUNT times (1)
	$(GO) test -run '^$$' -bench '$(BENCH)' -count $(or $(BENCHCOUNT),1) -timeout 60m ./bench ./objectstore/...

bench-compare: setup ## compare them with those of the revision BASE, BENCHCOUNT times (6), with benchstat
	$(GO) run ./bench/compare -base '$(BASE)' -bench '$(BENCH)' -count $(or $(BENCHCOUNT),6) $(if $(BENCHTIME),-benchtime $(BENCHTIME))

integration: setup $(SCRATCH) ## only the tests with a real containerd
	$(SCRATCH) $(GO) test -count=1 -timeout 40m ./integration/...
	$(GO) -C integration/script test -count=1 -timeout 5m ./...
	$(GO) -C integration/browser test -count=1 -timeout 5m ./...

test-containerd: build setup $(SCRATCH) ## the tests of another containerd: VERSION=2.1.9
	OSTREE_SNAPSHOTTER_BINARY=$(CURDIR)/bin/ostree-snapshotter OSTREE_SNAPSHOTTER_TEST_CONTAINERD=$(VERSION) \
	  $(SCRATCH) $(GO) test -count=1 -v -timeout 10m -run '^TestRelease' ./integration

demo: build ## pull two versions of an image with a private containerd and show the shared files
	$(GO) run ./integration/demo

clean: ## remove the output of build, but not the cache below ~/.cache/ostree-snapshotter
	rm -rf bin

help: ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15
