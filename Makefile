# make demo   train on scikit-learn's digits, audit, report (sets up .venv first)
# make test   the whole suite     make bench   speed ratios     make lint   ruff and mypy
# make docs   builds the site into site/, every warning an error
# make test-fast   statistics, attacks, records, imports and words, without simulations     make dist   sdist and wheel, tried in an environment of their own
# make test-docs   runs every command block of README and docs on small settings; CI runs it after `make test`
# make fuzz   damages every kind of file N times (10000) from SEED (0); KIND=... NUMBER=... SEED=... tries one input again
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
N ?= 10000
# without the attack that draws images: importing pipelines takes longer than its tests
FAST := tests/stats tests/attacks --ignore tests/attacks/test_black_box.py tests/records tests/test_architecture.py tests/test_words.py
SEED ?= 0
# Workers share the cores: threads of OpenMP that wait must not spin, which takes a loaded machine ten times the time of the work.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

unexport PYTHONDONTWRITEBYTECODE  # compiled tests and sources are kept from one run to the next

.PHONY: demo test test-fast test-docs bench fuzz lint docs dist clean

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/diffleak demo -o demo

test: .venv/installed
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-fast: .venv/installed
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow' $(FAST)

test-docs: .venv/installed
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m commands tests/site

bench: .venv/installed
	$(BIN)/python benchmarks/bench.py $(PARTS)

fuzz: .venv/installed
	$(ONE_THREAD) PYTHONPATH=tests $(BIN)/python -m fuzz --inputs $(N) --seed $(SEED) $(if $(KIND),--kind '$(KIND)' --number $(NUMBER))

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	.ci/try-wheel $(BIN)/python dist/*.whl

clean:
	rm -rf .venv demo dist site
