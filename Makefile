# Two commands matter to a newcomer: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# Debian's own interpreter first: it is readable by every user, so that a mesh built by root runs unprivileged.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11) python3)
VENV   := .venv
BIN    := $(VENV)/bin
WEFT   := $(BIN)/weft
T      ?=

RUST_SOURCES   := $(shell find crates -name '*.rs' -o -name Cargo.toml -o -name '*.txt' 2>/dev/null) Cargo.toml Cargo.lock
PYTHON_SOURCES := $(shell find src -name '*.py' -o -name '*.pyi' -o -name '*.md' 2>/dev/null) pyproject.toml

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1|\2/' | column -t -s'|'

# --- set up and build -------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(VENV)/.installed ## install what is missing: Debian packages, Python environment

$(VENV)/.debian: requirements/debian.txt tools/debian
	@mkdir -p $(VENV)
	@tools/debian requirements/debian.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.debian requirements/build.txt requirements/runtime.txt requirements/dev.txt
	@echo "weft: making the Python environment in $(VENV)"
# What has a python and no pip was left behind: by a venv without ensurepip (Debian's python3-venv), or by an interrupt.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		{ trap 'test -n "$${made:-}" || rm -rf $(VENV)' EXIT; rm -rf $(BIN) $(VENV)/lib; $(PYTHON) -m venv $(VENV); made=yes; }
	@$(BIN)/python -m pip install -q --require-hashes -r requirements/build.txt
	@$(BIN)/python -m pip install -q --require-hashes -r requirements/runtime.txt -r requirements/dev.txt
	@touch $@

.PHONY: build
build: $(VENV)/.built ## build the wheel and install it into .venv

$(VENV)/.built: $(VENV)/.installed $(RUST_SOURCES) $(PYTHON_SOURCES)
	@tools/rust-toolchain
	@echo "weft: building the wheel (the first time takes some minutes)"
	@rm -rf build dist
	@PATH="$$HOME/.cargo/bin:$$PATH" $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .
	@$(BIN)/python -m pip install -q --no-deps --force-reinstall dist/weft-*.whl
	@touch $@

.PHONY: wheel
wheel: build ## the wheel, in dist/
	@ls -l dist/*.whl

.PHONY: dev
dev: $(VENV)/.installed ## quick: a debug build used from src/ (PYTHONPATH=src)
	cargo build --locked -p weft-proxy -p weft-native --features weft-native/extension-module
	cp target/debug/libweft_native.so src/weft/_native.abi3.so

# --- use ----------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: build ## run Bookinfo as a mesh on this machine; Ctrl-C ends it
	@echo 'weft: in another terminal, `weft` is found after:  export PATH=$(CURDIR)/$(BIN):$$PATH'
	@$(WEFT) up examples/bookinfo

.PHONY: run
run: demo

# --- check --------------------------------------------------------------------------------------------------------

PYTEST := $(BIN)/python -m pytest
# Three workers for two cores, and four for tests that mostly wait; what shares a mesh stays together (tests/conftest.py).
SIDE_BY_SIDE := -n $(shell echo $$(( $$(nproc) * 3 / 2 ))) --dist loadgroup
conformance e2e: SIDE_BY_SIDE := -n $(shell echo $$(( $$(nproc) * 2 ))) --dist loadgroup

.PHONY: rust-tests
rust-tests: lint
	tools/rust-tests --no-run

.PHONY: test
test: build ## the fast tests: Rust and Python
	tools/rust-tests
	$(PYTEST) -q -m "not e2e and not conformance" $(SIDE_BY_SIDE) tests

.PHONY: test-one
test-one: build ## one test: make test-one T=tests/api/test_yaml.py
	$(PYTEST) -q $(T)

# WEFT_EVERY_DATA_PLANE=1 in the environment: with Envoy, too, what passes through no proxy. WEFT_PAIRS=1: each test as root and as
# an unprivileged user, with weft-proxy and with Envoy, but not with all four pairs of these.
.PHONY: e2e
e2e: build ## whole meshes of real processes, as root and as an unprivileged user
	$(PYTEST) -q -m "e2e and not alone" $(SIDE_BY_SIDE) tests/e2e
	$(PYTEST) -q -m "e2e and alone" tests/e2e

# With WEFT_UNPRIVILEGED=1 in the environment of root these meshes, and those of the soak, are an unprivileged user's.
CRASHES ?= 10
CHANGES ?= 3000
.PHONY: resilience
resilience: build ## crashes and changes under load, the long form; CRASHES=10 CHANGES=3000 (CI: 2 and 40)
	WEFT_CRASHES=$(CRASHES) WEFT_CHANGES=$(CHANGES) $(PYTEST) -q -m e2e tests/resilience

SECONDS ?= 3600
.PHONY: soak
soak: build ## traffic, changes and crashes for SECONDS=3600; a report on standard output and in build/soak.json
	@mkdir -p build
	$(BIN)/python -m tests.resilience.soak $(SECONDS) build/soak.json

ROTATION_SECONDS ?= 600
.PHONY: soak-rotation
soak-rotation: build ## keys of every level rotated under load, through both data planes; ROTATION_SECONDS=600
	WEFT_ROTATION_SECONDS=$(ROTATION_SECONDS) $(PYTEST) -q -s tests/live/test_rotation.py

.PHONY: interop
interop: ## build the judges of HTTP/2 and gRPC that are written in Go, and Dubbo's in Java; without these their tests are skipped
	@if command -v go >/dev/null; then tools/interop/build; else echo "weft: no Go: h2spec, gRPC interop and go-control-plane are skipped"; fi
	@if command -v mvn >/dev/null; then tools/interop/build-dubbo; else echo "weft: no Maven: Dubbo's own consumer and provider are skipped"; fi

.PHONY: conformance
conformance: build interop ## against third-party programs: Envoy, h2spec, grpc-go, go-control-plane, Dubbo, Thrift
	$(PYTEST) -q -m "conformance and not e2e" $(SIDE_BY_SIDE) tests

.PHONY: lint
lint: $(VENV)/.installed ## formatting, types, import rules, clippy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -q -- -D warnings

.PHONY: fmt
fmt: ## format everything
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	cargo fmt --all

.PHONY: gen
gen: $(VENV)/.installed ## generate: protobuf messages, reference pages
	tools/generate

.PHONY: check
check: ## exactly what CI runs
	# At once: the last minutes of the build are one thread's.
	$(MAKE) -j2 lint build rust-tests fuzz-targets
	$(MAKE) test PYTEST=tools/pytest-twice
	$(MAKE) conformance PYTEST=tools/pytest-twice
	WEFT_PAIRS=1 $(MAKE) e2e PYTEST=tools/pytest-twice
	# The dice fall alike in each run: what they have not shown yet the long forms look for.
	WEFT_SEED=1 $(MAKE) resilience CRASHES=2 CHANGES=40
	WEFT_SEED=1 $(MAKE) soak SECONDS=120
	FUZZ_SEED=1 $(MAKE) fuzz SECONDS_EACH=5
	tools/generate --check

.PHONY: bench
bench: build ## cost, side by side with the peers; needs an otherwise idle machine
	$(BIN)/python -m bench

.PHONY: fuzz
SECONDS_EACH ?= 300
fuzz: $(VENV)/.installed ## every parser of foreign bytes; SECONDS_EACH=300
	tools/fuzz $(SECONDS_EACH)

.PHONY: fuzz-targets
fuzz-targets: $(VENV)/.installed
	tools/fuzz 0

.PHONY: sanitize
sanitize: ## tests under Miri and under AddressSanitizer; the first needs a nightly toolchain
	tools/sanitize

.PHONY: lock
lock: $(VENV)/.installed ## resolve the locked requirements again
	for each in build runtime dev; do $(BIN)/python -m piptools compile -q --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --allow-unsafe --strip-extras --no-header --upgrade \
	  -o requirements/$$each.txt requirements/$$each.in; done

.PHONY: clean
clean: ## remove what was built
	rm -rf build dist target $(VENV) src/*.egg-info src/weft/_native*.so
