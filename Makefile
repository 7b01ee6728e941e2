# make run        search the quickstart space on a real Triton server (ARGS="--trials 20" adds options)
# make test       format, lint, types, imports and every test that is quick
# make test-slow  the slow suites alone      make test-docker  those on a real Docker engine
# make test-gpu   the acceptance test for a machine with an NVIDIA GPU and Docker
# make test-all   all of them but that       make format       format the code
# make docs       the documentation as a site, site/index.html; it opens without a network
# make clean      remove what make made; results/ stays

VENV := .venv
PY := $(VENV)/bin/python
SPACE ?= search_spaces/quickstart.yaml
ARGS ?=
# PIP_FLAGS= shows what pip does.
PIP_FLAGS ?= --quiet --quiet

# Byte code is written as modules are first imported: compiling every installed file took a third
# of the installation's time, and most of them are never imported.
PIP_INSTALL = $(PY) -m pip install --no-compile --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: run test test-slow test-docker test-all test-gpu docs format clean

run: $(VENV)/installed
	@$(PY) -m optimizer run $(SPACE) $(ARGS)

test: $(VENV)/installed-dev
	@scripts/check

test-slow: $(VENV)/installed-dev
	@scripts/check slow

# As root on Debian it installs Docker and debootstrap where they are missing.
test-docker: $(VENV)/installed-dev
	@scripts/check docker

test-all: test
	@$(MAKE) --no-print-directory test-slow
	@$(MAKE) --no-print-directory test-docker

test-gpu: $(VENV)/installed-dev
	@$(PY) -m pytest -m gpu

# The theme advertises its successor at every build, unless it is told not to.
docs: $(VENV)/installed-dev
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs --quiet build --strict
	@echo "wrote site/index.html"

format: $(VENV)/installed-dev
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find docs optimizer tests model_repository_templates -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than both files when what they ask for is installed.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/created
	@echo "Installing the optimizer, Triton and the runtimes into $(VENV) (about a minute) ..."
	@$(PIP_INSTALL) -e '.[embedded,dashboard]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/created
	@echo "Installing the optimizer, Triton, the runtimes and the test tools into $(VENV) (about a minute) ..."
	@$(PIP_INSTALL) -e '.[embedded,dashboard,dev,docs]'
	@touch $@ $(VENV)/installed

# Each candidate is run, not only looked for: a version manager leaves names that start nothing.
$(VENV)/created:
	@for candidate in python3.11 python3.12 python3; do \
	  if $$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11 or 3.12 is needed, and neither is on PATH. On Debian 12: apt-get install python3 python3-venv" >&2; \
	  exit 3; \
	fi; \
	if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python has no venv module. On Debian and Ubuntu: apt-get install $$python-venv" >&2; \
	  exit 3; \
	fi; \
	$$python -m venv --clear $(VENV)
	@touch $@
