# make help lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build all binaries, optimised
	cargo build --release --locked

.PHONY: demo
demo: ## Convert a sample appliance with the daemon and show the result (no root, no cluster)
	@tests/demo/run.sh

.PHONY: prerequisites
prerequisites:
	@tests/prerequisites.sh

.PHONY: tools
tools:
	@tests/prerequisites.sh tools

# Unit tests without the cluster's: what a change is checked with all along. The minute of simulations is for make test.
.PHONY: check
check: tools ## Format, clippy and unit tests without the cluster, and 200 simulations
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@COUNT=200 tests/run.sh --no-default-features --lib --bins

.PHONY: test
test: prerequisites ## Run every test that this machine can run, and list what it could not
	@trap 'tests/cluster/down.sh --of-tests' EXIT; tests/cluster/programs.sh; tests/run.sh

# How many kills, changed images and minutes of simulation.
KILLS ?= 200
CLUSTER_KILLS ?= 100
CHANGES ?= 1000
MINUTES ?= 60
.PHONY: test-long
test-long: prerequisites ## Kill sweeps at full size, lost nodes, more changed images, a real Debian, an hour of simulation
	@trap 'tests/cluster/down.sh --of-tests' EXIT; tests/cluster/programs.sh; \
	HYPER2KVM_LONG=1 HYPER2KVM_KILLS=$(KILLS) HYPER2KVM_CLUSTER_KILLS=$(CLUSTER_KILLS) BOLERO_RANDOM_ITERATIONS=$(CHANGES) HYPER2KVM_DIFFERENTIAL=1 \
	HYPER2KVM_GUESTS=$(CURDIR)/target/guests tests/run.sh --profile long -E 'test(/kill|mutation::|hive::edit::|failpoints::|debian::|boots::wide|^nodes::|^whole::/)'
	@if $(MAKE) --dry-run sim >/dev/null 2>&1; then $(MAKE) sim MINUTES=$(MINUTES); fi

.PHONY: test-kind
test-kind: prerequisites ## kind/up.sh on a real kind of two nodes, with docker and with podman (ENGINES=docker)
	@tests/kind/run.sh $(ENGINES)

.PHONY: sim
sim: ## Simulate the queue engine (SEED=first COUNT=how-many MINUTES=how-long; COUNT=1 shows the trace)
	SEED=$(or $(SEED),$$(date +%s)000) COUNT=$(COUNT) MINUTES=$(MINUTES) cargo test --locked --lib simulation::whatever_happens -- --nocapture

.PHONY: generate
generate: ## Write the generated files: crds/, the chart's copy, docs/api.md, deploy/base/operator.yaml
	cargo build --locked --quiet --bin hyper2kvm-operator
	deploy/generate.sh target/debug/hyper2kvm-operator "$$(tests/cluster/build.sh helm)/helm"

.PHONY: bench
bench: ## Measure the daemon: start, memory, settling, throughput
	cargo bench --locked --bench daemon

.PHONY: bench-convert
bench-convert: ## Time every conversion against qemu-img (makes about 36 GB of images; ROWS="--rounds 3 stream")
	cargo bench --locked --bench convert -- $(ROWS)

.PHONY: bench-guest
bench-guest: prerequisites ## Time the fix of a guest against virt-v2v-in-place, where that is installed (ROUNDS=3)
	cargo build --release --locked --bin hyper2kvm --bin hyper2kvm-appliance
	benches/guest.py target/release/hyper2kvm target/release/hyper2kvm-appliance target/guests/bootable $(ROUNDS)

.PHONY: bench-cluster
bench-cluster: prerequisites ## Measure the operator on a real API server and node (ROWS="start claims many")
	@trap 'tests/cluster/down.sh --of-tests' EXIT; cargo bench --locked --bench cluster -- $(ROWS)

.PHONY: lint
lint: prerequisites ## Format, clippy, docs, dependencies and licences, with and without the cluster
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	cargo deny --locked check bans licenses sources
	deploy/release/version.sh >/dev/null
	deploy/check-links.py
	deploy/check-spdx.sh

# Apart from lint: the database of advisories is fetched over the network.
.PHONY: advisories
advisories: ## Compare the dependencies with the known vulnerabilities (needs a network)
	cargo deny --locked check advisories

.PHONY: release
release: ## Make what a release has, into target/release-VERSION (VERSION=X.Y.Z, as Cargo.toml has it)
	deploy/release/make.sh "$(VERSION)"
