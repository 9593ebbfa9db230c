# `make demo` and `make test` need python3 (3.11 or newer) and nothing else; each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venvs/bench
SECONDS ?= 20

.PHONY: demo test check bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python -m resilience demo --seconds $(SECONDS)

test: $(VENV)/.test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 3 --dist loadfile $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: bench-circuit_breaker bench-rate_limiter bench-pool bench-policies

bench-%: $(BENCH)/.bench
	$(BENCH)/bin/python benchmarks/bench_$*.py $(ARGS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the site is in site/index.html"

clean:
	rm -rf $(VENV) .venvs site dist build .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis

# One environment, grown as it is needed; the benchmarks' peers get their own, so that none of what they pull in can
# change what is tested.
$(VENV)/.pip:
	$(PYTHON) -c 'import sys; sys.exit("resilience needs Python 3.11 or newer, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group test
	touch $@

$(VENV)/.lint: $(VENV)/.test pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group test --group lint
	touch $@

$(VENV)/.docs: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group docs
	touch $@

$(BENCH)/.bench: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BENCH)/bin/python -m pip install --quiet --editable . --group bench
	touch $@
