# make run     the main job in a terminal: a simulated line, a broker, a live view; Ctrl-C ends it
# make test    lint, types, unit and flow tests
# make bench   measures this machine
# make soak    the slow tests
# make lock    writes requirements/*.txt anew from setup.py
# make clean   removes the virtual environment and caches

VENV := .venv
BIN := $(VENV)/bin
BUNDLE ?= models/pcb
.DEFAULT_GOAL := help
.PHONY: help run test lint types unit bench soak lock clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^$$/q; s/^# //p' $(firstword $(MAKEFILE_LIST))

# A stamp says that everything of its level is installed; it is older than what it was made from when that changes.
DEMO := requirements/build.txt requirements/device.txt requirements/demo.txt requirements/install.sh setup.py edge/__init__.py

$(VENV)/.demo: $(DEMO)
	@requirements/install.sh $(VENV) demo

$(VENV)/.dev: $(DEMO) requirements/dev.txt
	@requirements/install.sh $(VENV) dev

run: $(VENV)/.demo
	@exec $(BIN)/edge demo --bundle $(BUNDLE)

test: $(VENV)/.dev
	@began=$$(date +%s); \
	$(MAKE) --no-print-directory lint types unit || { echo "make test: failed after $$(($$(date +%s) - began)) s"; exit 1; }; \
	echo "make test: all passed in $$(($$(date +%s) - began)) s"

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Side by side what shares nothing. Then, one after the other, what measures the answers of whole daemons; these mostly
# wait, and the toolchain's tests compute meanwhile at the lowest priority.
ALONE := $(addprefix tests/flow/test_,broker.py daemon.py line.py) tests/view

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -q --durations=10 -n 3 --dist loadfile --ignore=tests/tools $(addprefix --ignore=,$(ALONE))
	@log=$$(mktemp); \
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m pytest -q --durations=10 -n auto --maxprocesses=4 tests/tools >$$log 2>&1 & \
	tools=$$!; \
	$(BIN)/python -m pytest -q --durations=10 $(ALONE); alone=$$?; \
	wait $$tools; tools=$$?; cat $$log; rm -f $$log; exit $$((alone + tools))

bench: $(VENV)/.dev
	$(BIN)/edge bench --bundle $(BUNDLE)

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -o timeout=3600

lock:
	requirements/lock.sh

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find edge tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
