# The commands of the project. A fresh Debian 12 with Rust and root (or sudo) needs nothing
# else: `make demo` and `make test` install what is missing.

.DEFAULT_GOAL := help
SHELL := /bin/bash

# A failing test shows its chain of causes, not forty frames for each link.
export RUST_LIB_BACKTRACE := 0

SUDO    := $(if $(filter 0,$(shell id -u)),,sudo)
# One build of the dependencies serves the binaries, the tests and the demo.
BUILD   := cargo build --locked --workspace --bins --examples --tests
GUEST   := cargo build --locked --config .cargo/guest.toml --profile guest -p client-fuse -p initramfs
NEXTEST := $(shell command -v cargo-nextest)
PROFILE := $(if $(CI),ci,default)

.PHONY: help setup build guest image demo test lint clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the Debian packages that are missing
	@$(SUDO) tests/setup.sh

build: setup ## Build everything that runs on this machine
	$(BUILD)

guest: setup ## Build the static binaries that go into an initramfs
	$(GUEST)

image: setup ## Build the Debian disks in build/ (once)
	@mkdir -p build
	@$(SUDO) $(if $(SUDO),--preserve-env=CIRCULAR_MIRROR) tests/image/build-debian.sh build

demo: build guest image ## Publish a Debian, serve it, boot it over HTTP and log in
	@cargo run --quiet --locked --package circular-tests --example demo

test: build guest image ## Run every test, the boots included
ifneq ($(NEXTEST),)
	cargo nextest run --locked --workspace --profile $(PROFILE)
else
	cargo test --locked --workspace --lib --bins --tests
endif
	cargo test --locked --workspace --doc

lint: ## Check format, lints and documentation
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --locked --workspace --no-deps

clean: ## Remove what was built, the Debian disks too
	cargo clean
	$(SUDO) rm -rf build
