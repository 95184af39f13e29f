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
# A TUF client that is not ours, for the tests; its versions and hashes are in the list.
TUF     := build/python-tuf
TUFLIST := tests/tuf/requirements.txt
# The file system exerciser, for a test.
FSXVER  := 0.3.2
FSX     := build/fsx
DENYVER := 0.20.2
DENY    := build/cargo-deny-$(DENYVER)/bin/cargo-deny
TARGET  ?= page
FUZZ_SECONDS ?= 600
REPEATS ?= 5

.PHONY: help setup build guest image demo python-tuf fsx test bench lint deny fuzz clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

python-tuf: setup ## Install the TUF client of the tests in build/ (once)
	@[ $(TUF)/installed -nt $(TUFLIST) ] || { \
	  mkdir -p build && python3 -m venv --clear $(TUF) && \
	  $(TUF)/bin/pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r $(TUFLIST) && \
	  touch $(TUF)/installed; } || echo 'no python-tuf: the tests that need it say that they are skipped'

# Its program says of which version it is.
fsx: ## Install the file system exerciser of the tests in build/ (once)
	@[ "$$($(FSX)/bin/fsx --version 2>/dev/null)" = "fsx $(FSXVER)" ] || { \
	  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	  cargo install --quiet --locked --force --root $(FSX) --target-dir target/fsx fsx@$(FSXVER) && rm -rf target/fsx; \
	} || echo 'no fsx: the tests that need it say that they are skipped'

test: build guest image python-tuf fsx ## Run every test, the boots included
ifneq ($(NEXTEST),)
	cargo nextest run --locked --workspace --profile $(PROFILE)
else
	cargo test --locked --workspace --lib --bins --tests
endif
	cargo test --locked --workspace --doc

# BENCH: suites, like `p1 p13`; all without. OPTIONS: more for tests/examples/bench.rs, like `--quick`.
bench: image guest ## Compare with others into docs/BENCHMARKS.md (BENCH=p1 selects, REPEATS=5)
	@$(SUDO) tests/setup.sh bench
	cargo build --locked --release -p client-fuse -p image-tools -p server -p circular-tests --bins --example bench --example bare_fuse
	$(SUDO) target/release/examples/bench $(BENCH) --repeats $(REPEATS) --write docs/BENCHMARKS.md $(OPTIONS)

lint: ## Check format, lints and documentation
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --locked --workspace --no-deps

# The wheel on PyPI is of 2023: it knows neither today's licences nor today's advisories.
$(DENY):
	CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	cargo install --quiet --locked --root build/cargo-deny-$(DENYVER) --target-dir target/cargo-deny cargo-deny@$(DENYVER)
	rm -rf target/cargo-deny

deny: $(DENY) ## Check licences, sources, duplicates and advisories of all crates
	$(DENY) check licenses bans sources
	@if $(DENY) fetch db; then $(DENY) --offline check advisories; \
	else echo 'advisories: skipped, their database cannot be fetched'; fi

fuzz: ## Fuzz one TARGET of tests/fuzz for FUZZ_SECONDS (needs nightly Rust and cargo-fuzz)
	@mkdir -p build/fuzz/$(TARGET)
	@cp Cargo.lock tests/fuzz/Cargo.lock
	cargo +nightly fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz $(TARGET) \
	  build/fuzz/$(TARGET) tests/fuzz/corpus/$(TARGET) -- \
	  -max_total_time=$(FUZZ_SECONDS) -timeout=25 -rss_limit_mb=2048 -print_final_stats=1

clean: ## Remove what was built, the Debian disks too
	cargo clean
	$(SUDO) rm -rf build
