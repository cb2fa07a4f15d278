# Tegumentar. `make run` and `make test` do all the set-up themselves; running them again is quick and changes nothing.

PYTHON  ?= $(firstword $(wildcard /usr/bin/python3.11) $(shell command -v python3.11))
VENV    := .venv
PY      := $(VENV)/bin/python
STAMPS  := build/stamps
ARGS    ?=
# Most tests wait for something, so more of them than processors.
WORKERS ?= 3

.PHONY: run test bench bpf lint setup chaos lock clean help

help:           ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

run: setup      ## set everything up, then run the node service in the foreground (ARGS="--interface eth0")
	$(PY) run.py $(ARGS)

setup: $(STAMPS)/python-run bpf ## packages, virtual environment, locked dependencies, the eBPF object

test: $(STAMPS)/python-test $(STAMPS)/torch bpf lint ## set everything up, then every test against real parts
	@# what promises nothing about time shares the machine; what does has it alone; 5: none of the kind was asked for
	$(PY) -m pytest -m "not timed" --numprocesses $(WORKERS) --dist loadfile $(ARGS) || [ $$? -eq 5 ]
	$(PY) -m pytest -m timed $(ARGS) || [ $$? -eq 5 ]

lint: $(STAMPS)/python-test ## ruff, mypy, import walls
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(STAMPS)/python-test $(STAMPS)/torch bpf ## every performance claim, as a ratio against a peer in the same run
	$(PY) -m bench $(ARGS)

chaos: $(STAMPS)/python-test bpf ## ten minutes of random deaths; the short form is part of `make test`
	TEGUMENTAR_CHAOS_SECONDS=600 $(PY) -m pytest -m chaos --timeout 1800 $(ARGS)

bpf: $(STAMPS)/python-run $(STAMPS)/packages-run ## the CO-RE object, compiled ahead
	@$(PY) -m bpf.build

$(STAMPS)/packages-run: deploy/packages.sh
	@mkdir -p $(STAMPS)
	@sh deploy/packages.sh run
	@touch $@

$(STAMPS)/packages-test: deploy/packages.sh $(STAMPS)/packages-run
	@sh deploy/packages.sh test
	@touch $@

$(STAMPS)/python-run: requirements-run.lock $(STAMPS)/packages-run
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies"
	@$(PY) -m pip install --quiet --disable-pip-version-check --use-pep517 --require-hashes -r requirements-run.lock
	@touch $@

$(STAMPS)/python-test: requirements.lock $(STAMPS)/python-run $(STAMPS)/packages-test
	@echo "installing what the tests need"
	@$(PY) -m pip install --quiet --disable-pip-version-check --use-pep517 --require-hashes -r requirements.lock
	@touch $@

# torch has builds that differ by platform, so it is pinned by version and not by hash; only training needs it.
$(STAMPS)/torch: $(STAMPS)/python-test
	@echo "installing torch for the training tests"
	@$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@touch $@

lock:           ## resolve the dependencies again and write both lock files
	$(PY) -m pip install --quiet uv
	$(VENV)/bin/uv pip compile -q --generate-hashes --no-header --no-annotate --python-version 3.11 \
		--extra dpi --extra redis --extra postgres --extra kafka --extra dev pyproject.toml -o requirements.lock
	$(VENV)/bin/uv pip compile -q --generate-hashes --no-header --no-annotate --python-version 3.11 \
		--extra dpi --extra redis --extra postgres --extra kafka -c requirements.lock pyproject.toml -o requirements-run.lock

clean:          ## what was built; the virtual environment and the node's state stay
	rm -rf build
