# Two commands: `make book` and `make test`. Everything they need is installed into .venv.
PYTHON ?= python3
GRID ?= grids/quick.yaml
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(os.cpu_count() or 1, 8))")

PY := .venv/bin/python
INSTALLED := .venv/.installed
DEVELOPER := .venv/.developer

.PHONY: book pages test check runs bench lab clean

book: $(INSTALLED) ## train the quick grid, execute every notebook, build _build/html
	@$(PY) tools/assets.py
	@$(PY) -m rctaf.runs run grids/quick.yaml --jobs $(JOBS)
	@$(PY) tools/build_book.py --jobs $(JOBS)

pages: $(INSTALLED) ## the book from the records that exist: no training
	@$(PY) tools/assets.py
	@$(PY) tools/build_book.py --jobs $(JOBS)

test: book check ## the whole test suite, browser included
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS)

check: $(DEVELOPER) ## style, types, notebooks without outputs
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@git ls-files -z '*.ipynb' | xargs -0 $(PY) -m nbstripout --verify

runs: $(INSTALLED) ## run a grid: make runs GRID=grids/digits/figure_3.yaml JOBS=2
	@$(PY) -m rctaf.runs run $(GRID) $(if $(filter file,$(origin JOBS)),,--jobs $(JOBS))

bench: $(INSTALLED) ## time and memory here, on the GPU too if there is one, as ratios beside the committed ones
	@$(PY) benchmarks/bench_activations.py
	@$(PY) benchmarks/bench_training.py
	@$(PY) benchmarks/bench_packing.py
	@$(PY) benchmarks/bench_autoattack.py

lab: $(INSTALLED) ## the notebooks in JupyterLab: make lab LAB="--allow-root --no-browser"
	@.venv/bin/jupyter lab $(LAB) notebooks

clean: ## forget what was built; runs and their records stay
	rm -rf _build vendor node_modules

PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into .venv (a few minutes the first time)"
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@$(PIP_INSTALL) -e '.[experiments,notebooks,batch,book]'
	@touch $@

$(DEVELOPER): $(INSTALLED) ## what only the tests and checks need
	@$(PIP_INSTALL) -e '.[experiments,notebooks,batch,book,dev]'
	@touch $@
