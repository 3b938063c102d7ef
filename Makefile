# One word for each thing a developer or a user does. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
PYTHON ?= python3
# The plugins that are built by default: those that need no device and no foreign library.
PLUGINS := -p cpu-int8 -p candle-cpu
# How long `make fuzz` and `make fuzz-edges` look.
FUZZ_SECONDS ?= 600
# A virtual environment for what only Python can do (real clients, reference logits).
VENV := target/venv
# Another one: frameworks hold their clients' versions down.
FRAMEWORKS := target/venv-frameworks

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the server and its plugins (release)
	$(CARGO) build --release -p gateway $(PLUGINS)

.PHONY: run
run: build ## Build, then serve the built-in model on ports 8000 (HTTP) and 50051 (gRPC)
	target/release/crossgate serve $(ARGS)

.PHONY: plugins
plugins: ## Build the plugins (release) beside the server
	$(CARGO) build --release $(PLUGINS)

.PHONY: plugin-cuda
plugin-cuda: ## Build the plugin for NVIDIA's GPUs (release; fetches CUDA's compiler into target/cuda if there is none; needs no GPU)
	exports=$$(plugins/candle-cuda/compiler.sh); eval "$$exports"; $(CARGO) build --release -p candle-cuda

.PHONY: plugin-metal
plugin-metal: ## Build the plugin for Apple's GPUs (release; on macOS)
	$(CARGO) build --release -p candle-metal

.PHONY: redis
redis: ## Fetch Debian's redis-server for the tests that need one (into target/debian, no root)
	@deploy/debian.sh redis-server || { echo "make redis: no redis-server was fetched; without one in PATH (or valkey-server)" \
	  "the tests that need it are SKIPPED, or fail where REDIS_REQUIRED is set" >&2; }

.PHONY: onnxruntime
onnxruntime: ## Fetch ONNX Runtime's library for the plugin ort-coreml (PyPI's wheel, into target/onnxruntime)
	@$(PYTHON) plugins/ort-coreml/fetch.py || { echo "make onnxruntime: nothing was fetched; the tests that need it" \
	  "are SKIPPED, or fail where ONNXRUNTIME_REQUIRED is set" >&2; }

.PHONY: test
test: redis onnxruntime ## Run every test
	# The tests that load plugins take them from target/debug, as a user's server takes them from beside itself.
	$(CARGO) build
	$(CARGO) test
	# What the CUDA plugin reads of the driver's NVML, from a library that stands in for it.
	$(CARGO) test --features candle-plugin/nvml --test nvml

.PHONY: parity
parity: onnxruntime ## Measure every plugin against transformers' logits: the table in plugins/README.md
	$(CARGO) build $(PLUGINS) -p ort-coreml
	BLESS=1 $(CARGO) test -p gateway --test parity

.PHONY: test-large
test-large: ## Load a model of XLM-R large's size (1.1 GB in TMPDIR): its memory, its time
	$(CARGO) test --release -p cpu-int8 --test large -- --ignored --nocapture

.PHONY: test-interleavings
test-interleavings: ## What threads decide together (flights, queue, line), in many interleavings of them
	$(CARGO) test -p gateway --features shuttle --test interleavings

.PHONY: test-neon
test-neon: ## The int8 engine's tests for aarch64, in qemu (Linux, root; sets up a Debian chroot)
	plugins/cpu-int8/tests/neon.sh

.PHONY: check-macos
check-macos: ## Lint for Macs what a Mac builds, without one (Linux; rustup, and zig's C compiler from PyPI)
	plugins/candle-metal/check.sh

.PHONY: gpu-bundle
gpu-bundle: ## Pack what measures the CUDA plugin beside PyTorch, for a machine with a GPU (into target/gpu-bundle)
	plugins/candle-cuda/evidence/bundle.sh

.PHONY: test-cuda
test-cuda: ## candle-cuda's tests: on the GPU, or without one on an emulated driver (fetches nvcc into target/cuda if there is none)
	plugins/candle-cuda/test.sh

# -Zsanitizer and libFuzzer are nightly's; the stable compiler has them behind RUSTC_BOOTSTRAP. The target is
# named so that build scripts and macros are built without the sanitizer.
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')

# A plugin's library finds the sanitizer's runtime in the program that loads it, so that has to show it (-rdynamic).
.PHONY: test-asan
test-asan: ## The plugins' tests under AddressSanitizer, their libraries loaded and dropped over and over among them
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address -Clink-arg=-rdynamic" CARGO_TARGET_DIR=target/asan \
	  $(CARGO) test -p fake -p cpu-int8 --target $(HOST)

.PHONY: test-compilers
test-compilers: ## A plugin by other compilers (COMPILERS="PATH/rustc ..."), and with Rust's own types laid out at random
	COMPILERS="$(COMPILERS)" $(CARGO) test -p backend-api --test refusals -- --ignored other_compilers

.PHONY: fuzz
fuzz: ## Fuzz the int8 engine's loader for FUZZ_SECONDS=600
	$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	$(PYTHON) plugins/cpu-int8/fuzz/seeds.py plugins/golden plugins/cpu-int8/fuzz/corpus/folder
	cd plugins/cpu-int8 && RUSTC_BOOTSTRAP=1 nice $(CARGO) fuzz run folder -- -max_total_time=$(FUZZ_SECONDS) \
	  -dict=fuzz/folder.dict -max_len=16384 -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=20

.PHONY: fuzz-edges
fuzz-edges: $(VENV)/ready ## Fuzz HTTP and gRPC of a live server for FUZZ_SECONDS=600: ARGS="--seed 7", or "--seed 7 --only 1234"
	$(CARGO) build
	$(VENV)/bin/python gateway/tests/clients/fuzz_edges.py target/debug/crossgate --seconds $(FUZZ_SECONDS) $(ARGS)

.PHONY: test-openapi
test-openapi: $(VENV)/ready ## Hold a running server against its OpenAPI description, with and without keys (schemathesis)
	$(CARGO) build
	$(VENV)/bin/python gateway/tests/clients/openapi.py target/debug/crossgate $(ARGS)

.PHONY: lint
lint: ## Check formatting and lints
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --all-targets -- -D warnings

.PHONY: deny
deny: ## Check licences and advisories of all dependencies (needs cargo-deny)
	$(CARGO) deny check

.PHONY: bench
bench: ## Measure the int8 engine: kernels against the machine's peak, encoder by length
	$(CARGO) bench -p cpu-int8 --bench engine -- $(ARGS)

.PHONY: peers
peers: ## Crossgate beside ONNX Runtime, OpenVINO and infinity: ARGS="WORKLOAD.jsonl --rounds 9"
	loadtest/peers/run.sh $(ARGS)

.PHONY: test-clients
test-clients: build $(VENV)/ready $(FRAMEWORKS)/ready ## Real Python clients and frameworks against a running server
	$(VENV)/bin/python gateway/tests/clients/clients.py target/release/crossgate
	$(FRAMEWORKS)/bin/python gateway/tests/clients/frameworks.py target/release/crossgate

.PHONY: overload
overload: build ## Overload in scenarios with verdicts: ARGS="three-times hang-ups --model DIR --workload FILE"
	$(CARGO) build --release -p loadtest
	$(PYTHON) gateway/tests/clients/overload.py $(ARGS)

.PHONY: test-deploy
test-deploy: build ## What deploy/ holds: two servers, Redis, nginx and Prometheus, from Debian's packages
	$(CARGO) build --release -p loadtest
	$(PYTHON) deploy/test.py $(ARGS)

$(VENV)/ready: gateway/tests/clients/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r $<
	touch $@

$(FRAMEWORKS)/ready: gateway/tests/clients/frameworks.txt
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/pip install -q -r $<
	touch $@

.PHONY: bless
bless: ## Accept the generated contracts: OpenAPI, configuration reference, ABI layout
	BLESS=1 $(CARGO) test -p gateway --test edges --test config
	BLESS=1 $(CARGO) test -p backend-api --test layout
