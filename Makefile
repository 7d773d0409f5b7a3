# Two commands: `make demo` runs the main job, `make test` passes the tests. Both set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The demo trains on real chest X-rays where MEDVEIL_DATA holds them, else on the built-in phantom.
ifneq ($(wildcard $(MEDVEIL_DATA)/pneumoniamnist_28),)
PLAN ?= plans/pneumonia-28-private.toml
HOSPITALS ?= plans/pneumonia-28-hospitals.toml
else
PLAN ?= plans/phantom-private.toml
HOSPITALS ?= plans/phantom-hospitals.toml
endif

RUN ?= runs/demo-$(notdir $(basename $(PLAN)))

FEDERATION ?= runs/federation
# Faults for the federation: make federation KILL="--kill site-2@step:30"
KILL ?=

.PHONY: demo federation live test check install clean

demo: $(VENV)/installed
	$(BIN)/medveil train $(PLAN) --out $(RUN) --no-report
	$(BIN)/medveil audit $(RUN) --quick --quiet
	$(BIN)/medveil attack $(RUN) --quick --quiet

# Three hospitals on this machine: real processes, certificates, mutual TLS, data folders of their own.
federation: $(VENV)/installed-nvflare
	$(BIN)/medveil connect trial $(HOSPITALS) --out $(FEDERATION) $(KILL)

# Two processes, a file at a time, the longest first; each keeps to one thread, or they would fight over the cores.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Faults and attacks on real processes with certificates, one after the other: minutes.
live: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m live tests/integration

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

install: $(VENV)/installed

# torch first and by its exact version: a looser request would fetch another build.
$(VENV)/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt "torch==2.13.0"
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-nvflare: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e ".[nvflare]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info src/*.egg-info
