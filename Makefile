# Everything a person or CI does with Shunt. `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
RUST_MIN := 1.89
PYANG := target/pyang/bin/pyang
PYANG_VERSION := 2.7.1
# A client of RESTCONF that is not ours, for the tests.
CLIENTS := target/clients/bin/python
CLIENTS_VERSION := 1.0.5
SCRIPTS := qemu/setup qemu/build-guest qemu/run qemu/guest/init .ci/run .ci/rustc-loom

# Linked to nothing at run time: guests have another libc, or another version of it.
AGENT := target/agent/shunt
AGENT_TARGET := $(shell uname -m)-unknown-linux-gnu

.PHONY: help setup rust build agent demo test loom lint bench guest clean

help: ## lists these targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: rust ## installs what building and testing need: Debian packages (as root), Python's
	@qemu/setup
	@$(MAKE) --no-print-directory $(PYANG) $(CLIENTS)

rust:
	@version=$$($(CARGO) --version 2>/dev/null | cut -d ' ' -f 2) || true; \
	if [[ -z $$version || $$(printf '%s\n' $(RUST_MIN) "$$version" | sort -V | head -n 1) != $(RUST_MIN) ]]; then \
	    echo "Shunt needs Rust $(RUST_MIN) or newer, this is '$${version:-none}'." >&2; \
	    echo "Get it with rustup ('rustup update stable'): Debian 12's own is too old." >&2; \
	    exit 1; \
	fi

build: rust ## builds the release binary, target/release/shunt
	$(CARGO) build --release --locked

agent: rust ## builds the static program for guests, target/agent/shunt
	RUSTFLAGS='-C target-feature=+crt-static' CARGO_TARGET_DIR=target/agent \
	    $(CARGO) build --locked --profile agent --target $(AGENT_TARGET) \
	    --no-default-features --features agent --bin shunt
	@cmp --silent target/agent/$(AGENT_TARGET)/agent/shunt $(AGENT) || \
	    install -m 0755 target/agent/$(AGENT_TARGET)/agent/shunt $(AGENT)
	@if needs=$$(readelf --wide --dynamic $(AGENT) | grep NEEDED); then \
	    echo "$(AGENT) is not static: $$needs" >&2; \
	    exit 1; \
	fi

demo: setup guest ## shows an offload on this machine, from boot to speed-up (as root)
	$(CARGO) build --release --locked --bins --example demo
	@$(CARGO) run --release --locked --quiet --example demo

# Real peers (QEMU, DPDK) are waited for; hugepages only make them quicker.
test: setup guest agent ## runs all tests, then the memory models
	@if [[ $$EUID == 0 && $$(< /proc/sys/vm/nr_hugepages) -lt 512 ]]; then \
	    echo 512 > /proc/sys/vm/nr_hugepages || echo "no hugepages: DPDK runs without"; \
	fi
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    set -x; $(CARGO) nextest run --locked $(TESTS); \
	else \
	    set -x; $(CARGO) test --locked $(TESTS) -- --test-threads=1; \
	fi
	$(CARGO) test --locked --doc
	$(MAKE) --no-print-directory loom

loom: rust ## model-checks the memory ordering of rings and tables
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/.ci/rustc-loom $(CARGO) test --locked --lib model

$(PYANG): # brings the modules of the IETF with it
	python3 -m venv target/pyang
	target/pyang/bin/pip install --quiet --disable-pip-version-check pyang==$(PYANG_VERSION)

$(CLIENTS):
	python3 -m venv target/clients
	target/clients/bin/pip install --quiet --disable-pip-version-check cisco-nso-restconf==$(CLIENTS_VERSION)

lint: setup ## formatting, clippy, rustdoc, shellcheck, YANG, dependency policy
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --features agent -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items
	shellcheck $(SCRIPTS)
	$(PYANG) --strict --lint --path target/pyang/share/yang/modules docs/yang/*.yang
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	    set -x; $(CARGO) deny --offline check licenses bans sources; \
	else \
	    echo "cargo-deny is not installed: dependency policy (deny.toml) not checked"; \
	fi

# On standard output nothing but the JSON lines.
bench: rust ## runs all benches; prints JSON lines, also in target/bench
	@qemu/setup >&2
	@$(CARGO) bench --locked --quiet --bench '*'

bench-%: rust ## runs one bench: make bench-NAME
	@qemu/setup >&2
	@$(CARGO) bench --locked --quiet --bench $*

guest: ## builds the router guest, target/guest
	@qemu/build-guest

clean: ## removes what was built
	rm -rf target
