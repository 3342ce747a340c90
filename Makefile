# `make quickstart` and `make test` do everything on a machine that has Python >= 3.11, make, and a package index.
#
#   PYTHON  the Python that the environment is made with         make test PYTHON=python3.12
#   VENV    where the environment lives                          make test VENV=/tmp/venv
#   EXTRAS  more of setup.py's extras, separated by commas       make quickstart EXTRAS=tpu
#   ARGS    goes to the command that the target runs             make test ARGS="-k masking"

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?=
ARGS ?=
WORKERS ?= 2

comma := ,
space := $(subst ,, )
extras = $(subst $(space),$(comma),$(sort $(subst $(comma), ,$(EXTRAS) $(1))))
# The stamp says that this set of extras is installed from these requirements.
stamp = $(VENV)/.installed-$(subst $(comma),-,$(or $(call extras,$(1)),base))

BASE := $(call stamp)
TEST := $(call stamp,test)
# Apache Beam wants other versions of some packages, and has an environment of its own in this one.
BEAM := $(VENV)/beam/.installed
# The compiler of TPUs stands beside the environment too: where it is installed, JAX looks for a TPU whenever it starts.
TPU := $(VENV)/tpu/.installed
RUN := $(abspath $(VENV))/bin
# glibc gives large blocks back to the system and takes them again at every step: 73,000 page faults a step for a million
# parameters. One arena that keeps what it has costs a fifth less CPU. Read before Python starts; other systems ignore it.
KEEP := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000

.PHONY: help quickstart test plans lint format types bench beam tpu-compiler install clean
.DELETE_ON_ERROR:

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/ /' | awk '{name = $$1; $$1 = ""; printf "%-12s%s\n", name, $$0}'

quickstart: $(BASE)  ## Fresh machine -> SFT -> reward model -> PPO on the CPU, with a report
	$(KEEP) $(RUN)/python -m experiments.run run quickstart $(ARGS)

test: $(TEST) $(BEAM) $(TPU)  ## All tests
	$(RUN)/python -m pytest -n $(WORKERS) $(ARGS)

plans: $(TEST) $(TPU)  ## Every program of every experiment for TPUs, compiled for its slice: half an hour
	RLHF_JAX_PLANS=1 $(RUN)/python -m pytest tests/plan/test_topologies.py $(ARGS)

lint: $(TEST)  ## Style: ruff check and format
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

format: $(TEST)  ## Repairs what lint complains about, where ruff can
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

types: $(TEST)  ## Types: pyright
	$(RUN)/pyright --pythonpath $(RUN)/python

bench: $(BASE)  ## What is fast and what is not, on this machine
	$(KEEP) $(RUN)/python -m benchmarks.run $(ARGS)

tpu-compiler: $(TPU)  ## libtpu in VENV/tpu, by which the tests compile for TPUs that are not there

beam: $(BEAM)  ## The environment of Apache Beam, VENV/beam

install: $(BASE)  ## The environment alone, with EXTRAS

clean:  ## Removes the environment and the caches, never runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache build rlhf_jax.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "rlhf_jax needs Python >= 3.11 and $(PYTHON) is $$($(PYTHON) -V 2>&1 | head -n 1); say which to use: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BEAM): setup.py constraints-beam.txt | $(VENV)/bin/pip
	@echo "installing into $(VENV)/beam: Apache Beam"
	@$(RUN)/python -m venv $(VENV)/beam
	@$(VENV)/beam/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-beam.txt -e '.[beam]'
	@touch $@

$(TPU): constraints.txt | $(VENV)/bin/pip
	@echo "installing into $(VENV)/tpu: libtpu"
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target $(VENV)/tpu libtpu
	@touch $@

$(VENV)/.installed-%: setup.py constraints.txt | $(VENV)/bin/pip
	@echo "installing into $(VENV): rlhf_jax, $*; the first time this downloads a gigabyte or more"
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.$(if $(filter-out base,$*),[$(subst -,$(comma),$*)])'
	@touch $@
