# What a person types. Needs python3 (3.11, 3.12 or 3.13) and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Hypothesis draws the same examples each time, so that a commit passes or fails wherever it is tested; a plain `pytest`
# draws new ones.
SHARED := -n 2 --dist loadfile --durations=20 --hypothesis-profile=ci

.PHONY: demo test lint bench chaos licences audit sbom azurite clean

demo: .venv/.installed ## The whole pipeline on generated films: archive -> catalogue -> data set -> search -> scores -> query
	$(BIN)/rayscan demo --out rayscan-demo

# Two runs, because the last of a thousand tests in one process crashed: servers, Ray sessions and graphs of the earlier
# ones were still there. Each run has two processes, and a file of tests stays in one of them: tests spend much of their
# time waiting for servers and for Ray. pytest-xdist begins with the files of most tests, which leaves those that share a
# Ray session to the end, so that none idles beside the others; in the second run the long proofs go first, in the order
# given. At its end each run lists its slowest tests.
test: lint ## Everything that must hold
	$(BIN)/python -m pytest $(SHARED) tests/models tests/pipelines tests/tuning
	$(BIN)/python -m pytest $(SHARED) --no-loadscope-reorder tests/integration tests/cluster

lint: .venv/.installed-dev ## Style, types and imports between layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.installed-dev ## Measurements; see tests/benchmarks
	$(BIN)/python -m pytest -m bench -s tests/benchmarks

chaos: .venv/.installed-dev ## Kill processes half-way and count the rows; see tests/chaos. And the longest proofs elsewhere
	$(BIN)/python -m pytest -m chaos -s tests

licences: .venv/.installed-dev ## The licence of every package in the environment
	$(BIN)/pip-licenses --from=mixed --order=license

# `--strict`, because the service's silence about a package would otherwise pass for its health.
audit: .venv/.installed-dev ## Known vulnerabilities of every package in the environment; asks PyPI about each
	$(BIN)/pip freeze --disable-pip-version-check --exclude-editable > .venv/audited.txt
	@$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement .venv/audited.txt || { echo \
		"audit: not passed. A package has a known vulnerability (the table above names it)," \
		"or the service did not answer for one (the error above says so): then nothing was found out." >&2; exit 1; }

# In an environment of its own: it brings `rfc3987-syntax`, which each process of Ray would import, and which takes longer
# to import than Ray (SLOW_TO_IMPORT in cluster/node_facts.py).
sbom: .venv/.installed-dev .sbom/.installed ## Every package in the environment, with version and licence, as CycloneDX: sbom.json
	.sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o sbom.json $(BIN)/python
	@echo "sbom: written to sbom.json"

.sbom/.installed:
	$(PYTHON) -m venv .sbom
	.sbom/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	touch $@

azurite: .azurite/node_modules ## Azure's emulator, for the tests of az://; needs npm

.azurite/node_modules:
	npm install --silent --prefix .azurite azurite@3.35.0

clean: ## Remove the environment and what the demo made
	rm -rf .venv .azurite .sbom rayscan-demo sbom.json *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "rayscan needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
