# `make demo` and `make test` set up all they need from nothing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
CONFORMANCE := .venv-conformance

.PHONY: demo test test-all test-gpu test-mutants test-docker constraints lint docs report-pictures bench bench-gpu quality \
	conformance clean

demo: $(INSTALLED)  ## Adan and AdamW on handwritten digits: a table and a plot
	$(RUN) vision/train.py -m optimizer=adan,adamw
	$(RUN) scripts/compare.py runs/vision/optimizer=adan runs/vision/optimizer=adamw --out runs/demo.png

# ADAN_TEST_LUCK=1 runs the tests with other seeds and other rounding (tests/luck.py), OMP_NUM_THREADS=2 with two threads
test: lint  ## what CI runs
	$(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

test-all: lint test-mutants  ## with the slow tests and the planted faults
	$(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal

test-gpu: $(INSTALLED)  ## on a GPU; with compute-sanitizer (of the CUDA toolkit) it also sees stray accesses
	$(shell command -v compute-sanitizer && echo --error-exitcode=1 --target-processes=all) \
		$(RUN) -m pytest tests/optim/test_gpu.py

test-mutants: $(INSTALLED)  ## plants faults one at a time; the tests must notice each
	$(RUN) tests/mutants.py

test-docker:  ## builds the images without Docker and runs a row in one; as root on Debian
	docker/test.sh

constraints:  ## the versions of all packages, with what pyproject.toml newly needs; see scripts/constraints.py
	$(PYTHON) scripts/constraints.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(RUN) scripts/docs.py --check

docs: $(INSTALLED)  ## writes the tables that are generated from code
	$(RUN) scripts/docs.py

report-pictures: $(INSTALLED)  ## takes the pictures in docs/report.md, with the released logs in ADAN_RELEASED
	$(RUN) scripts/report.py results --out report.html --pictures docs

bench: $(INSTALLED)  ## on a quiet machine
	$(RUN) scripts/bench_optimizers.py --out results/bench/optimizers
	$(RUN) scripts/bench_training.py --out results/bench/training

bench-gpu: $(INSTALLED)  ## the same on a CUDA GPU, with the large models
	$(RUN) scripts/bench_optimizers.py --device cuda --out results/gpu/optimizers
	$(RUN) scripts/bench_training.py --device cuda --out results/gpu/loops
	$(RUN) scripts/bench_training.py --device cuda --optimizers --out results/gpu/training

quality: $(INSTALLED)  ## does a small state cost quality? Continues where it was stopped
	$(RUN) scripts/state_quality.py

conformance: $(CONFORMANCE)/.installed  ## every implementation against the papers, in an environment of its own
	$(CONFORMANCE)/bin/python scripts/conformance.py --out results/conformance

$(CONFORMANCE)/.installed: pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv $(CONFORMANCE)
	$(CONFORMANCE)/bin/pip install --quiet -e '.[recipes,test,conformance]'
	touch $@

$(INSTALLED): pyproject.toml constraints.txt setup.py $(wildcard csrc/*)
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-compile -c constraints.txt -e '.[recipes,test]'  # what is imported is compiled then
	touch $@

clean:  ## what is made here, never a folder that VENV=PATH names
	rm -rf .venv .venv-conformance build *.egg-info optim/*.so
