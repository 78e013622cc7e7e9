# Each target does all its own set-up: it needs make, Python 3.11+ and the package registries.
#   ARGS="…"      arguments for the program that the target runs
#   PYTHON=…      the Python that .venv is made with (default: the first that is new enough)
#   REQUIRE_ALL=1 a skipped test is a failed one

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON ?= python3 python3.13 python3.12 python3.11
VENV   := .venv
BIN    := $(VENV)/bin
NODE   := $(VENV)/.installed-node# extras node and embedded
DEV    := $(VENV)/.installed-dev#  extra dev, which includes both
TWO    := -n 2 --dist loadfile#    pytest in two processes: most tests wait for something; -n 0 in ARGS: in one

# A .venv holds absolute paths: one that was copied or moved with its checkout is made anew.
ifneq ($(shell cat $(VENV)/.checkout 2>/dev/null),$(CURDIR))
.PHONY: $(NODE) $(DEV)
endif

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: install
install: $(NODE) ## make .venv with .venv/bin/cache-node, and nothing else

.PHONY: demo
demo: $(if $(findstring kratos,$(ARGS)),$(DEV),$(NODE)) ## the tour: embedded Valkey, demo origin, two nodes; ARGS="--once --json"
	@exec $(BIN)/cache-node demo $(ARGS)

.PHONY: kratos
kratos: $(NODE) ## build the real Kratos that some tests, demos and benchmarks need, beforehand (needs Go)
	@exec $(BIN)/python -m cache_node.demo.kratos_build

.PHONY: test
test: $(DEV) ## all tests that need no toolchain beyond Python
	@exec $(BIN)/python -m pytest $(TWO) -m "not kratos and not model" $(ARGS)

.PHONY: unit
unit: $(DEV) ## those of them that start no server and no other process: under 30 s
	@exec $(BIN)/python -m pytest -m "not process and not slow and not kratos and not model" $(ARGS)

.PHONY: test-all
test-all: $(DEV) ## those, a real Kratos (needs Go) and the models (need spin, gcc); names what it skipped
	@exec $(BIN)/python -m pytest $(TWO) -rs --no-fold-skipped $(ARGS)

.PHONY: check
check: $(DEV) ## lint, format, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: loadtest
loadtest: $(DEV) ## a minute of users at the demo while things break, judged against the truth; ARGS="--seconds N --users N"
	@exec $(BIN)/python -m loadtest $(ARGS)

.PHONY: bench
bench: $(DEV) ## what hits, misses, revocations and memory cost, beside nginx and others; ARGS="NAME --rounds N"
	@exec $(BIN)/python -m benchmarks $(ARGS)

.PHONY: model
model: $(DEV) ## random histories of nodes, readers, faults, judged against the truth; ARGS="--steps N --seed S"
	@exec $(BIN)/python -m tests.histories $(ARGS)

.PHONY: guards
guards: $(DEV) ## remove each guard of the consistency core in turn: its test must fail; or ARGS=--histories must
	@exec $(BIN)/python -m tests.guards $(ARGS)

$(NODE): pyproject.toml constraints.txt
	@$(call install,node$(comma)embedded)
	@touch $@

$(DEV): pyproject.toml constraints.txt
	@$(call install,dev)
	@touch $(NODE) $@

# $(call install,EXTRAS): progress goes to stderr, so that stdout is the program's alone. The marks of an
# earlier install go first: whatever interrupts this one leaves none.
comma := ,
define install
exec >&2; set -e; \
if [ -L $(VENV) ]; then echo "make: $(VENV) is a link, and would be emptied where it leads: remove it"; exit 1; fi; \
rm -f $(NODE) $(DEV); \
if [ "$$(cat $(VENV)/.checkout 2>/dev/null)" != "$(CURDIR)" ] || ! $(BIN)/python -c '' 2>/dev/null; then \
  for python in $(PYTHON) ''; do \
    if [ -z "$$python" ]; then echo "make: no Python 3.11 or newer among: $(PYTHON) (set PYTHON=…)"; exit 1; fi; \
    ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || break; \
  done; \
  echo "making $(VENV) with $$("$$python" --version)"; \
  "$$python" -m venv --clear $(VENV) || { \
    echo "make: $$python cannot make a virtual environment (Debian: apt-get install python3-venv)"; exit 1; }; \
  printf '%s\n' "$(CURDIR)" > $(VENV)/.checkout; \
fi; \
echo "installing cache-node[$(1)] into $(VENV) (half a minute, on some machines a whole one)…"; \
PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input \
  install --editable '.[$(1)]'
endef
