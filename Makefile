# `make help` lists the targets. Everything here works from a clean clone on Debian 12 or 13
# after `make setup`; `make demo` does that itself.
SHELL := /bin/bash
CARGO ?= cargo
# The tests of the binary `vm` run virtual machines: few at a time, after all others. Those of the binary `long` run only
# by targets of their own. What builds asks for `--workspace`: with `-p` dependencies get other features, and are built anew.
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: help setup build lint test test-fast test-borg test-vm test-long test-store bench-stall deny fuzz demo demo-backup-vm bench bench-quick man clean

help: ## Lists the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## Installs what building, testing and the demo need (Debian packages; root or sudo)
	scripts/setup

build: ## Builds the release binary
	$(CARGO) build --release --locked
	scripts/guest-program $(or $(CARGO_TARGET_DIR),target)/release/strongroom-guest >/dev/null

lint: ## Formatting, layers and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) test --package strongroom-tidy --locked --quiet
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

test: lint test-fast test-borg test-vm ## Runs every check and test, the quick ones first

ifeq ($(NEXTEST),yes)
SWEEPS := (binary(sim) and test(/^(faults|deaths)::/))
FAST := nextest run --workspace --locked -E 'not (binary(vm) or binary(long) or $(SWEEPS))'
VM := nextest run --workspace --locked -E 'binary(vm) or $(SWEEPS)'
BORG := nextest run --workspace --locked -E 'package(/^strongroom-(borg|store)$$/) and binary(stock)'
else
FAST := test --workspace --locked --lib --bins --test '[!lv]*'
VM := test --workspace --locked --test vm -- --test-threads=1
BORG := test --workspace --locked --test stock
endif

test-fast: ## Runs the tests that need no virtual machine
	$(CARGO) test --workspace --locked --doc
	$(CARGO) $(FAST)

test-borg: ## Runs the tests of Borg client and store against the newest Borg 1.4 as well
	STRONGROOM_TEST_BORG=$$(scripts/borg-1.4) $(CARGO) $(BORG)

test-vm: ## Runs the tests with real virtual machines, and the sweeps over the simulated one
	$(CARGO) $(VM)

test-long: ## Kills programs, guests and daemons at random for STRONGROOM_LONG_MINUTES=20, then stops them at each step (root)
	$(CARGO) test --workspace --locked --test long -- --include-ignored --nocapture kill::the_guest_is_never_harmed
	$(CARGO) test --workspace --locked --test long -- --include-ignored --nocapture hang::

test-store: ## Takes turns with stock Borg and cuts the power, very many times (STRONGROOM_LONG_TURNS, _ROUNDS, _TRIALS)
	$(CARGO) test --locked -p strongroom-store --test stock --test faults -- --ignored --nocapture --skip holder_of_a_lock --skip writer_without_end

bench-stall: ## Measures what a guest feels of a backup, beside a control: table and target/stall.json (root)
	$(CARGO) test --workspace --locked --test long -- --include-ignored --nocapture stall::the_stall

deny: ## Checks licences, sources and advisories of all dependencies (needs cargo-deny)
	$(CARGO) deny --locked check

SECONDS ?= 60
fuzz: ## Runs each fuzz target for SECONDS=60 (needs cargo-fuzz)
	fuzz/run $(SECONDS)

demo: setup build ## Backs up, destroys and restores a real virtual machine
	scripts/demo/run

demo-backup-vm: setup build ## The same by an encrypted VM that backs up its neighbour
	scripts/demo/backup-vm

bench: build ## Measures Strongroom beside its peers for half an hour (root): target/bench.json, and a report from it
	scripts/setup --bench
	benches/run --output target/bench.json
	benches/report target/bench.json

bench-quick: build ## The same with a sixteenth of the data, once: to see that it runs
	scripts/setup --bench
	benches/run --quick --output target/bench-quick.json
	benches/report target/bench-quick.json

man: ## Writes docs/man from the command line's definition
	rm -f docs/man/*.1
	$(CARGO) run --locked -q -p strongroom -- man docs/man

clean: ## Removes build results (the cache of guests stays: see STRONGROOM_CACHE)
	$(CARGO) clean
