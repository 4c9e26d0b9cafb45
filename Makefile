# What one does with weir's sources. Each target first installs what the machine lacks (see .ci/setup); when nothing
# is missing that costs a few milliseconds and touches neither the network nor root.

CARGO ?= cargo

# where rustup puts cargo, for the shell that has not been reopened since
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help run test lint fuzz bench slow soak setup
.DEFAULT_GOAL := help

help:
	@echo 'make run     build the release binary and run it on conf/weir.yaml (http://127.0.0.1:8080/)'
	@echo 'make test    run all tests'
	@echo 'make lint    check formatting, clippy without warnings, and the parsers on some random input'
	@echo 'make fuzz    the parsers on random input, two minutes each (FUZZ="--seconds 600 request_path")'
	@echo 'make bench   compare weir with nginx and haproxy on this machine (under ten minutes)'
	@echo 'make slow    good requests beside 10,000 slow clients, with weir and nginx in turn (six minutes)'
	@echo 'make soak    reload and replace a busy weir for five minutes, and count what fails (SOAK=seconds)'
	@echo 'make setup   only install what a build needs'

run: setup
	$(CARGO) run --release --locked -- -c conf/weir.yaml

test: setup
	$(CARGO) test --locked

lint: setup
	@.ci/setup lint
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	$(CARGO) run --locked --quiet --example fuzz

# weir is built such that it tells what an input has reached: see tests/fuzz/main.rs
fuzz: FUZZ ?= --seconds 120
fuzz: setup
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/tests/fuzz/instrument $(CARGO) run --locked --example fuzz -- $(FUZZ)

# BENCH takes the harness' own options: make bench BENCH="--case small --rounds 1"
bench: setup
	@.ci/setup bench
	$(CARGO) bench --locked --bench compare -- $(BENCH)

# BENCH as above: make slow BENCH="--rounds 1"
slow: setup
	@.ci/setup bench
	$(CARGO) bench --locked --bench compare -- --slow $(BENCH)

# half an hour, say: make soak SOAK=1800
soak: SOAK ?= 300
soak: setup
	WEIR_TEST_SOAK=$(SOAK) $(CARGO) test --release --locked --test weir -- soak --nocapture

setup:
	@.ci/setup build
