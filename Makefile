# Each target makes the environment it needs: .venv, filled with the versions in requirements.lock. A second run reuses it,
# an interrupted installation is taken up again, a changed lock is installed over it.

PROFILE ?= laptop
ONLY    ?=
WORKERS ?= 2

# Python 3.11 or newer; `make PYTHON=/path/to/python tutorial` chooses another one.
CANDIDATES := python3.13 python3.12 python3.11 python3.14 python3 python
PYTHON ?=

VENV := .venv
PY := $(VENV)/bin/python
# The stamps' names change with what should be installed, and with the folder, which a virtual environment cannot leave.
LOCKED := $(VENV)/locked-$(shell { cat requirements.lock; pwd; } | cksum | tr ' ' '-')
READY := $(VENV)/ready-$(shell { cat requirements.lock pyproject.toml; pwd; } | cksum | tr ' ' '-')

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH PYTHONHOME

# Tests and notebooks live on what the repository and its packages carry: any attempt to download fails at once.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:
.PHONY: help tutorial test lint gate unit smoke study replicate lab bench notebooks sync format lock clean

help: ## this list
	@echo "UniReason-Lab. Each command sets up .venv by itself the first time (about 7 GB, some minutes)."
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Settings: PROFILE=smoke|laptop|t4|gpu  ONLY=\"00 03\" (notebooks)  PYTHON=/path/to/python3  WORKERS=2 (tests)"

tutorial: $(READY) ## run every notebook, show where the executed ones are and what came out
	@$(PY) -m unireason_lib tutorial --profile $(PROFILE) $(ONLY)

test: lint gate unit smoke study ## all that must hold: lint, notebook gate, unit tests, notebooks and a study in the smoke profile

lint: $(READY)
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

gate: $(READY)
	@$(PY) -m unireason_lib.tutorial gate

# One thread a worker: more make small tensors slower, and two workers would fight over two cores.
unit: $(READY)
	@$(OFFLINE) MPLBACKEND=Agg OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		$(PY) -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

smoke: $(READY)
	@$(PY) -m unireason_lib tutorial --profile smoke --out runs/smoke $(ONLY)

# the study of the claims at its smallest: every condition once, from fine-tuning to the table; afresh each time
study: $(READY)
	@for study in claims-smoke efficiency-smoke; do \
		rm -rf runs/ablation/$$study runs/sft/$$study-* runs/rl/$$study-* runs/evaluation/$$study-*; \
	done
	@$(PY) -m unireason_lib ablate data/ablations/claims.yaml --profile smoke --seeds 1 --look
	@$(PY) -m unireason_lib ablate data/ablations/efficiency.yaml --profile smoke --seeds 1 --only "40 volumes" --look

# a thread each for two notebooks at a time: on two cores that is faster than two threads for one
replicate: $(READY) ## the study of the claims on this machine (hours; goes on where it was stopped), into runs/results
	@failed=0; for study in claims efficiency; do \
		OMP_NUM_THREADS=1 $(PY) -m unireason_lib ablate data/ablations/$$study.yaml --workers 2 --keep runs/results || failed=$$?; \
		[ $$failed != 130 ] || break; \
	done; exit $$failed

lab: $(READY) ## JupyterLab on the notebooks, which it keeps in step with their text twins
	@$(PY) -m jupyter lab notebooks

bench: $(READY) ## the table of speed and memory, and its JSON
	@$(OFFLINE) $(PY) -m unireason_lib bench $(ARGS)

notebooks: $(READY) ## re-execute the committed notebooks in the laptop profile (ONLY="00 03" for some)
	@$(PY) -m unireason_lib.tutorial refresh $(ONLY)

sync: $(READY) ## bring notebooks and text twins in step after an edit of either
	@$(PY) -m unireason_lib.tutorial sync $(ONLY)

format: $(READY) ## format code and notebooks
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .
	@$(PY) -m unireason_lib.tutorial sync

# UPGRADE=1 takes newer versions; without it, pins that still fit pyproject.toml stay as they are.
lock: $(READY) ## refresh requirements.lock from pyproject.toml (UPGRADE=1 for newer versions)
	@$(PY) -m pip install --quiet uv
	@grep -v '^#' requirements.lock > $(VENV)/pins.txt
	@$(PY) -m uv pip compile pyproject.toml --extra dev --extra cc3d --extra llm --extra ray --universal --python-version 3.11 \
		--fork-strategy fewest --no-header --no-annotate --quiet $(if $(UPGRADE),--upgrade) --output-file $(VENV)/pins.txt
	@{ sed -n '/^#/p' requirements.lock; cat $(VENV)/pins.txt; } > $(VENV)/requirements.lock
	@mv $(VENV)/requirements.lock requirements.lock
	@echo "requirements.lock: $$(grep -c == requirements.lock) packages. Now: make test"

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV): $(READY)

# Says how far pip is; by itself it prints several hundred lines, or with --quiet nothing for minutes. (A shell loop: some
# awks read a pipe in blocks and would say everything at the end.)
define PROGRESS
total=$$(grep -c == requirements.lock); count=0; clear=''; \
if [ -t 1 ]; then clear=$$(printf '\r\033[K'); fi; \
while IFS= read -r line; do \
	case $$line in \
	Collecting\ *|Processing\ *) \
		count=$$((count + 1)); name=$${line#* }; name=$${name%% *}; name=$${name##*/}; \
		if [ -n "$$clear" ]; then printf '%s  downloading %s of at most %s: %s' "$$clear" $$count $$total "$$name"; \
		elif [ $$((count % 50)) -eq 0 ]; then echo "  downloading: $$count of at most $$total"; fi ;; \
	Installing\ collected*) printf '%s' "$$clear"; echo "  unpacking $$count packages, a minute or two" ;; \
	esac; \
done
endef

$(LOCKED):
	@set -e; \
	python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		for candidate in $(CANDIDATES); do \
			if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
				python=$$candidate; break; \
			fi; \
		done; \
	fi; \
	if [ -z "$$python" ] || ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "Python: expected 3.11 or newer, found $$("$${python:-python3}" --version 2>&1 || echo none)." >&2; \
		echo "Install one (python.org, conda, or your system's packages), or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; \
	fi; \
	if ! $(PY) -c 'import sys; sys.exit(sys.prefix != "$(CURDIR)/$(VENV)")' >/dev/null 2>&1 || ! $(PY) -m pip --version >/dev/null 2>&1; then \
		echo "Making $(VENV) with $$("$$python" --version 2>&1)"; \
		rm -rf $(VENV); \
		if ! "$$python" -m venv $(VENV) >$(VENV).log 2>&1; then \
			cat $(VENV).log >&2; rm -rf $(VENV) $(VENV).log; \
			echo "The virtual environment could not be made. On Debian and Ubuntu its module is a package of its own:" >&2; \
			echo "  sudo apt install python3-venv     (python3.12-venv and the like for another version)" >&2; \
			exit 1; \
		fi; \
		rm -f $(VENV).log; \
	fi; \
	echo "Installing the $$(grep -c == requirements.lock) pinned packages of requirements.lock into $(VENV), once; some minutes, about 7 GB"; \
	rm -f $(VENV)/ready-* $(VENV)/locked-* $(VENV)/failed; \
	{ $(PY) -m pip install --progress-bar off -r requirements.lock 2>&1 || touch $(VENV)/failed; } \
		| tee $(VENV)/install.log | { $(PROGRESS); }; \
	if [ -e $(VENV)/failed ]; then \
		tail -n 25 $(VENV)/install.log >&2; \
		echo "The installation failed (all it said: $(VENV)/install.log). Run make again: it goes on from here." >&2; \
		exit 1; \
	fi; \
	touch $(LOCKED)

# The project itself, as a link to this folder. Its dependencies are those just installed.
$(READY): $(LOCKED)
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/ready-*; touch $(READY)
