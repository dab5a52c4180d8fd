# Peerage. 'make' lists what can be made.

GO    ?= go
TOOL  := $(GO) tool -modfile=.ci/tools.mod
BIN   := bin/peerage
T     ?= 30s
N     ?= 10

# Debian packages that the tests use: real clients, nft, which has a switch drop packets,
# and a C compiler for the race detector.
PACKAGES := curl bind9-dnsutils nftables gcc libc6-dev

# The browsers that the browser tests drive, and certutil, which makes them trust a CA.
BROWSERS := chromium firefox-esr libnss3-tools

# What Peerage is compared with.
RIVALS := keepalived

FUZZ = $(shell grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: build
build: ## build bin/peerage
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN) ./cmd/peerage

.PHONY: run
run: build ## build, and run a three-node site on loopback until Ctrl-C
	@exec $(BIN) demo

.PHONY: test
# The simulator is one goroutine a run and counts in seconds of CPU: not under -race. Nor is
# the cluster of 64 nodes, which the race detector does not always survive. The
# tests of cmd/peerage are whole sites, which answer within their times only on a machine
# that they have to themselves.
test: packages browser build ## all tests, with the race detector
	$(GO) test -race -shuffle=on -timeout 15m $$($(GO) list ./... | grep -v -e /balancing/sim -e /cmd/peerage)
	$(GO) test -race -shuffle=on -timeout 15m ./cmd/peerage
	$(GO) test -shuffle=on ./balancing/sim ./balancing/cluster

.PHONY: check
check: ## formatting, vet, static analysis, tidy modules
	@out="$$($(TOOL) gofumpt -l .)"; test -z "$$out" || { echo "run 'make fmt': $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) fix -diff ./...
	$(TOOL) staticcheck ./...
	@out="$$($(TOOL) deadcode -test ./...)"; test -z "$$out" || { echo "$$out"; exit 1; }
	$(GO) mod tidy -diff

.PHONY: fmt
fmt: ## format all Go code
	$(TOOL) gofumpt -w .

.PHONY: fuzz
fuzz: ## run every fuzz target for T (30s) each
	@set -e; for p in $(FUZZ); do for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$p/*_test.go | sed 's/func //'); do \
		echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(T) $$p; done; done

.PHONY: chaos
chaos: packages ## five nodes on a LAN under random faults for T (30s)
	PEERAGE_CHAOS=$(T) $(GO) test -v -run TestChaos -timeout 24h ./cmd/peerage

.PHONY: vipchaos
vipchaos: packages ## who answers for VIPs, under random faults for T (30s)
	PEERAGE_VIPCHAOS=$(T) $(GO) test -v -run TestVIPChaos -timeout 24h ./cmd/peerage

.PHONY: bench
bench: ## run every benchmark, for docs/benchmarks.md
	$(GO) test -run '^$$' -bench . -benchmem ./...

.PHONY: bench-failover
# Only as root the nodes have the priority that they have on a machine of their own.
bench-failover: rivals ## Peerage beside keepalived: the holder of a VIP fails N (10) times in each way
	@mkdir -p bin && rm -f bin/failover.json
	@apart=; test "$$(id -u)" != 0 || apart='unshare --net --mount env PEERAGE_TEST_NAMESPACE=1'; \
	PEERAGE_FAILOVER=$(N) PEERAGE_FAILOVER_JSON=$(CURDIR)/bin/failover.json PEERAGE_FAILOVER_CHART=$(CURDIR)/docs/failover.svg \
		$(GO) test -v -run '^TestFailover$$' -timeout 24h -exec "$$apart" ./cmd/peerage

.PHONY: cover
cover: packages browser ## coverage of the tests, a line a function
	$(GO) test -coverprofile=bin/cover.out -coverpkg=./... ./...
	$(GO) tool cover -func=bin/cover.out

# Installs the packages that are missing, and only then asks for root.
.PHONY: packages browser rivals
packages: WANTED := $(PACKAGES)
browser: WANTED := $(BROWSERS)
rivals: WANTED := $(RIVALS)
packages browser rivals:
	@command -v dpkg-query >/dev/null || { echo "not a Debian-like machine: install by hand what is missing of: $(WANTED)"; exit 0; }; \
	missing=; for p in $(WANTED); do \
		dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	test -z "$$missing" && exit 0; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; else \
		echo "the tests need these Debian packages:$$missing"; \
		echo "there is neither root nor sudo here: have them installed (apt-get install$$missing), then run make again"; exit 1; fi; \
	echo "installing$$missing"; \
	$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
