# Each target makes the environment it needs: .venv, filled by uv with the versions in requirements.lock. A second run
# reuses it, an interrupted installation is taken up again, a changed lock is installed over it.

PROFILE ?= laptop
ONLY    ?=
WORKERS ?= 2

# Python 3.11 or newer; `make PYTHON=/path/to/python tutorial` chooses another one.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
UV := $(or $(shell command -v uv),$(VENV)/bin/uv)
# changes with what should be installed, and with the folder, which a virtual environment cannot leave
READY := $(VENV)/ready-$(shell { cat requirements.lock pyproject.toml; pwd; } | cksum | tr ' ' '-')

export PYTHONNOUSERSITE := 1
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE # packages are compiled once
# tests live on what the repository and its packages carry: any attempt to download fails at once
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
# one thread a process: two processes would fight over two cores
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help tutorial test lint unit smoke study replicate lab bench coverage notebooks sync format lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'Settings: PROFILE=smoke|laptop|t4|gpu  ONLY="00 03" (notebooks)  PYTHON=python3.12  WORKERS=2 (tests and notebooks at a time)'

tutorial: $(READY) ## run every notebook, two at a time, and end with the table of results (ONLY=04: one, with all cores)
	@$(if $(ONLY),,$(ONE_THREAD)) $(PY) -m unireason_lib tutorial --profile $(PROFILE) $(if $(ONLY),$(ONLY),--workers $(WORKERS))
test: lint unit smoke study ## lint, unit tests, notebooks and a study in the smoke profile
lint: $(READY) ## format, lint, and whether the committed notebooks are fresh
	@$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(PY) -m unireason_lib.notebooks gate
unit: $(READY) ## unit tests (ARGS="-k boxes" for some)
	@$(OFFLINE) $(ONE_THREAD) MPLBACKEND=Agg $(PY) -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)
smoke: $(READY)
	@$(ONE_THREAD) $(PY) -m unireason_lib tutorial --profile smoke --workers $(WORKERS) --out runs/smoke $(ONLY)
study: $(READY)
	@rm -rf runs/ablation/second-smoke
	@$(ONE_THREAD) $(PY) -m unireason_lib ablate data/ablations/second.yaml --profile smoke --seeds 1 --workers $(WORKERS) --look
replicate: $(READY) ## the second study on this machine (hours; resumes where it was stopped), into runs/results
	@$(ONE_THREAD) $(PY) -m unireason_lib ablate data/ablations/second.yaml --workers $(WORKERS) --keep runs/results
lab: $(READY) ## JupyterLab on the notebooks, kept in step with their paired scripts
	@$(PY) -m jupyter lab notebooks
bench: $(READY) ## speeds as ratios, measured side by side (ARGS="--against FOLDER" for another checkout)
	@$(OFFLINE) $(PY) tests/bench/run.py $(ARGS)
coverage: $(READY) ## unit tests with the proportion of covered lines
	@$(OFFLINE) $(ONE_THREAD) $(PY) -m pytest -q -n $(WORKERS) --dist loadfile --cov unireason_lib --cov-report term
notebooks: $(READY) ## execute the committed notebooks anew (ONLY="00 03" for some)
	@$(PY) -m unireason_lib.notebooks refresh $(ONLY)
sync: $(READY) ## bring notebooks and paired scripts in step after an edit of either
	@$(PY) -m unireason_lib.notebooks sync $(ONLY)
format: $(READY) ## format code and notebooks
	@$(PY) -m ruff check --fix-only --quiet . ; $(PY) -m ruff format . && $(PY) -m unireason_lib.notebooks sync
lock: $(READY) ## requirements.lock from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(UV) pip compile pyproject.toml --extra dev --extra llm --extra ray --universal --python-version 3.11 \
		--fork-strategy fewest --no-annotate --custom-compile-command "make lock" --quiet -o requirements.lock $(ARGS)
clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(READY):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PY) -c 'import sys; sys.exit(sys.prefix != "$(CURDIR)/$(VENV)")' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@test -x "$(UV)" || $(PY) -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --python $(PY) -r requirements.lock
	@$(UV) pip install --python $(PY) --quiet --no-deps --no-build-isolation -e . && rm -f $(VENV)/ready-* && touch $(READY)
