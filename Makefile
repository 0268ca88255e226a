# Every command of the project; CI calls these and nothing else.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OLD_TRITON := .triton36/.ready

.PHONY: setup quickstart kernels test test-slow faults test-triton test-browser test-gpu gpu check fmt docs site golden bench

setup: $(READY)

$(READY): pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)

quickstart: $(READY)  ## train a small HMoE on the embedded corpus: about five minutes on two cores
	$(BIN)/hmoe train quickstart

kernels: $(READY)  ## the optional C++ library for bfloat16 on this processor: seconds, needs a C++ compiler
	$(BIN)/python -m hmoe.kernels.build

# Two workers of one thread each: threads that wait for each other cost more than they bring on shapes this small.
test: $(READY)  ## the whole suite but the slow proofs; property tests with fixed cases (pytest alone draws new ones)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --hypothesis-profile ci --numprocesses 2 --dist worksteal

test-slow: $(READY)  ## minutes each: kill campaigns, flat memory, what the quickstart reaches
	$(BIN)/python -m pytest -m "slow and not gpu" -rA

MINUTES ?= 20
SEED ?= 0
ONLY ?=
# strace lets single system calls fail; without it those tests are skipped, which the table shows.
faults: $(READY)  ## what may go wrong, planted by seed, MINUTES=20 at a time; the parts add up; ONLY="R4a:17 R12" some, or one case
	command -v strace >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y strace >/dev/null; } \
	  || echo "some faults need strace: apt-get install strace"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --minutes $(MINUTES) --seed $(SEED) --only $(ONLY)

$(OLD_TRITON):
	$(BIN)/python -m pip install --quiet --target .triton36 --upgrade --no-deps "triton==3.6.0" "numpy<2.4"
	touch $(OLD_TRITON)

# Float16 is left to `make test`: bfloat16 and float32 go the same ways.
test-triton: $(READY) $(OLD_TRITON)  ## kernels compiled and interpreted with the Triton of PyTorch 2.11 for CUDA
	PYTHONPATH=$(CURDIR)/.triton36:src HMOE_EXPECT_TRITON=3.6 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --hypothesis-profile ci \
	  -W "ignore:Conversion of an array:DeprecationWarning" --numprocesses 2 --dist worksteal \
	  -m "triton and not slow and not gpu" -k "not triton-float16 and not fp16" tests/kernels

# Debian's Chromium: a browser of Playwright's own would be a download of 150 MB.
test-browser: $(READY)  ## pages in a browser: widths, themes, keyboard; SCREENSHOTS=FOLDER keeps what it looked like
	command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } \
	  || { echo "make test-browser needs chromium: apt-get install chromium"; exit 1; }
	$(BIN)/python -m pip install --quiet --editable ".[browser]"
	SCREENSHOTS="$(SCREENSHOTS)" $(BIN)/python -m pytest -m browser tests/browser

test-gpu:  ## on a machine with a GPU: needs torch, triton and pytest only
	PYTHONPATH=src:$$PYTHONPATH $(PYTHON) -m pytest -W default -m gpu tests/kernels

SCREENSHOTS ?=
STAGES ?=
gpu:  ## the first ten minutes on a GPU: right? how fast? where does the time go? STAGES=0,4 some, DRY_RUN=1 without a GPU
	PYTHONPATH=src:$$PYTHONPATH PYTHONUNBUFFERED=1 $(PYTHON) -m benchmarks.gpu --stages "$(STAGES)" $(if $(DRY_RUN),--dry-run)

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fmt: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## docs/reference from the code
	$(BIN)/python docs/generate.py

site: $(READY)  ## the documentation as a site to be read from disk, build/site/index.html; a broken link is an error
	$(BIN)/python -m pip install --quiet --editable ".[site]"
	$(BIN)/sphinx-build -q -W --keep-going docs build/site

golden: $(READY)  ## write the golden losses anew; only when the mathematics was meant to change
	$(BIN)/python -m tests.golden.write

bench: $(READY)  ## the MoE layer and the training step, side by side with their limits
	$(BIN)/hmoe bench layer --threads 1 --dtype bfloat16 --dtype float32
	$(BIN)/hmoe bench layer --dtype bfloat16 --dtype float32
	$(BIN)/hmoe bench step --precision float32 --precision bfloat16
	$(BIN)/hmoe bench decode --threads 1
	$(BIN)/hmoe bench decode
