# The targets that CI calls are the targets to call by hand.

GO ?= go
GOLANGCI_LINT = $(GO) tool -modfile=tools.mod golangci-lint

# Everything but the integration tests.
UNIT = $(shell $(GO) list ./... | grep -v /integration)
# Tests against a real containerd that run with checkouts of hard links too. All run with composefs where the kernel can.
HARDLINK = ^Test(Clients|DaemonKilled|EqualFilesStaySeparate|Garbage|Lost|Pull|Reboot|Repair|UserNamespace)$$
# Modules of their own, for what the product's go.mod must not name. The programs below integration/tools that have no code
# here are not among them.
MODULES = integration/browser integration/tools/goerofs
FUZZTIME ?= 20s
BENCH ?= .

.DEFAULT_GOAL := build
.PHONY: build test race lint fmt fuzz bench gobench bench-compare integration demo clean help setup

build: ## the static binary, bin/ostree-snapshotter
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ostree-snapshotter ./cmd/ostree-snapshotter

setup: ## Debian packages, containerd, nerdctl and images for the tests; needs root the first time
	$(GO) run ./integration/setup

test: setup ## all tests: units, suites and, as root, against a real containerd
	$(GO) test -timeout 25m ./...
	$(GO) -C integration/browser test -timeout 5m ./...
	OSTREE_SNAPSHOTTER_TEST_CHECKOUT=composefs $(GO) test -timeout 25m ./snapshotter/...
	OSTREE_SNAPSHOTTER_TEST_CHECKOUT=hardlink $(GO) test -timeout 25m -run '$(HARDLINK)' ./integration

race: ## units and suites under the race detector; needs gcc
	$(GO) run ./integration/setup gcc
	CGO_ENABLED=1 $(GO) test -race -timeout 25m $(UNIT)

lint: ## golangci-lint at the version of tools.mod
	$(GOLANGCI_LINT) run ./...
	@set -e; lint=$$($(GO) tool -modfile=tools.mod -n golangci-lint); for m in $(MODULES); do \
	  echo "== $$m"; (cd $$m && $(GO) vet ./... && "$$lint" run ./...); \
	done

fmt: ## format the source
	$(GOLANGCI_LINT) fmt ./...

fuzz: ## each fuzz test for FUZZTIME (20s)
	@set -e; for pkg in $(UNIT); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
	  done; \
	done

bench: build setup ## snapshotters against each other, into bench/results; BENCHFLAGS for ostree-snapshotter bench
	$(GO) run ./bench/run $(if $(BENCHKEEP),-keep) -- $(BENCHFLAGS)

gobench: setup ## the Go benchmarks that match BENCH, BENCHCOUNT times (1)
	$(GO) test -run '^$$' -bench '$(BENCH)' -count $(or $(BENCHCOUNT),1) -timeout 60m ./bench ./objectstore/...

bench-compare: setup ## the same of the revision BASE and of the working tree in turn, BENCHCOUNT times (6), with benchstat
	$(GO) run ./bench/compare -base '$(BASE)' -bench '$(BENCH)' -count $(or $(BENCHCOUNT),6) $(if $(BENCHTIME),-benchtime $(BENCHTIME))

integration: setup ## only the tests against a real containerd
	$(GO) test -count=1 -timeout 40m ./integration/...

demo: build ## pull two versions of an image with a private containerd and show what is shared
	$(GO) run ./integration/demo

clean: ## remove what build made; the cache below ~/.cache/ostree-snapshotter stays
	rm -rf bin

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15
