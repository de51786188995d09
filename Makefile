# make demo     everything on drawn faces: baseline, tuned, balanced runs, ensemble, report
# make test     the tests
# make report   the same on real faces: make report DATA=/path/to/fer2013.csv SUITE=official
# make worth    the three protocols side by side: make worth DATA=/path/to/fer2013.csv SIZE=cpu (on a GPU without SIZE)
#               FERPLUS=/path/to/fer2013new.csv adds a second opinion on the labels
# make tune     a sweep over optimizers, regularizers and schedules: make tune DATA=/path/to/fer2013.csv SUITE=official-cpu SWEEP=tuning
# make search   the same within a budget, by Optuna: make search DATA=/path/to/fer2013.csv SUITE=official-cpu SEARCH=tuning
# make help     all targets

SHELL := /bin/bash
PYTHON ?= python3
BACKEND ?= cpu
SUITE ?= official
SIZE ?=
SWEEP ?= tuning
SEARCH ?= tuning
comma := ,
space := $(subst ,, )
VENV := .venv
BIN := $(VENV)/bin
# The programs that Snakemake and the notebooks call are the environment's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)
READY := $(VENV)/.ready-$(BACKEND)

.PHONY: help install demo test test-jax report worth tune search lint pictures benchmarks clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make install  the environment in .venv; BACKEND=gpu for CUDA (default: cpu), PYTHON=python3.12 for another Python"
	@echo "make test-jax  the tests of model, training and evaluation on JAX"
	@echo "make lint     ruff on code and notebooks"

install: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"fer-keras needs Python 3.11 to 3.13, and {sys.executable} is {v[0]}.{v[1]}. Use make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(BACKEND),sweep,search,test]'
	@touch $@

demo: $(READY)
	snakemake --config suite=demo

report: $(READY)
	@test -n "$(DATA)" || { echo "Say where the faces are: make report DATA=/path/to/fer2013.csv SUITE=$(SUITE)"; exit 2; }
	@test -e "$(DATA)" || { echo "There is no file or folder $(DATA)"; exit 2; }
	snakemake --config suite=$(SUITE) data="$$(realpath "$(DATA)")"

worth: $(READY)
	@test -n "$(DATA)" || { echo "Say where the faces are: make worth DATA=/path/to/fer2013.csv SIZE=$(SIZE)"; exit 2; }
	@test -e "$(DATA)" || { echo "There is no file or folder $(DATA)"; exit 2; }
	snakemake --config suite=$(subst $(space),$(comma),$(foreach name,official clean study,$(name)$(addprefix -,$(SIZE)))) data="$$(realpath "$(DATA)")" $(if $(FERPLUS),ferplus="$$(realpath "$(FERPLUS)")")

# Of a suite on drawn faces, DATA is not needed.
tune: $(READY)
	@test -z "$(DATA)" || test -e "$(DATA)" || { echo "There is no file or folder $(DATA)"; exit 2; }
	snakemake --config suite=$(SUITE) sweep=$(SWEEP) $(if $(DATA),data="$$(realpath "$(DATA)")")

search: $(READY)
	@test -z "$(DATA)" || test -e "$(DATA)" || { echo "There is no file or folder $(DATA)"; exit 2; }
	mkdir -p outputs/$(SUITE)/search-$(SEARCH)
	papermill notebooks/search.ipynb outputs/$(SUITE)/search-$(SEARCH)/notebook.ipynb -p suite $(SUITE) -p search $(SEARCH) $(if $(DATA),-p data "$$(realpath "$(DATA)")")
	fer-keras render outputs/$(SUITE)/search-$(SEARCH)/notebook.ipynb

test: $(READY)
	python -m pytest

test-jax: $(READY)
	python -m pip install --quiet --disable-pip-version-check --editable '.[jax]'
	KERAS_BACKEND=jax python -m pytest tests/test_model.py tests/test_augment.py tests/test_train.py tests/test_evaluate.py

lint: $(READY)
	python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	ruff check . && ruff format --check . && nbstripout --verify notebooks/*.ipynb

pictures: $(READY)
	python docs/pictures.py

clean:
	rm -rf $(VENV) .snakemake
