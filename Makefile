# make demo     everything on drawn faces: baseline, tuned, balanced runs, ensemble, report
# make test     the tests
# make report   the same on real faces: make report DATA=/path/to/fer2013.csv SUITE=official
#               FERPLUS=, AFFECTNET=, EXPW=, CHECKPOINT= give the paths that some runs need
#               GPUS=4 makes four runs at a time, each on a GPU of its own, here and below
#               CLUSTER=slurm makes each run a job of a cluster: docs/clusters.md
# make worth    the three protocols side by side: make worth DATA=/path/to/fer2013.csv SIZE=cpu (on a GPU without SIZE)
#               FERPLUS=/path/to/fer2013new.csv adds a second opinion on the labels
# make tune     a sweep over optimizers, regularizers and schedules: make tune DATA=/path/to/fer2013.csv SUITE=official-cpu SWEEP=tuning
# make search   the same within a budget, by Optuna: make search DATA=/path/to/fer2013.csv SUITE=official-cpu SEARCH=tuning
# make test-app the app in headless Chromium, with a film for a camera, hostile uploads and twenty clients
# make help     all targets

SHELL := /bin/bash
PYTHON ?= python3
BACKEND ?= cpu
SUITE ?= official
SIZE ?=
SWEEP ?= tuning
SEARCH ?= tuning
CLUSTER ?=
GPUS ?=
comma := ,
space := $(subst ,, )
# A misspelled one would be passed over in silence, and with `SUIT=clean` the suite `official` run.
SETTINGS := PYTHON BACKEND SUITE SIZE SWEEP SEARCH CLUSTER GPUS DATA AFFECTNET EXPW FERPLUS CHECKPOINT SHELL VENV
$(foreach word,$(filter-out $(addsuffix =%,$(SETTINGS)),$(subst \$(space),_,$(MAKEOVERRIDES))),$(if $(findstring =,$(word)),\
    $(error There is no setting $(word). There are: $(SETTINGS))))
VENV := .venv
BIN := $(VENV)/bin
# The programs that Snakemake and the notebooks call are the environment's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)
SNAKEMAKE := snakemake$(if $(CLUSTER), --workflow-profile profiles/$(CLUSTER))$(if $(GPUS), --resources gpu=$(GPUS))
READY := $(VENV)/.ready-$(BACKEND)

# Paths that the command line gives, absolute, since notebooks and Snakemake may run elsewhere; `drawn` is none.
GIVEN := $(foreach name,DATA AFFECTNET EXPW FERPLUS CHECKPOINT,$(if $($(name)),$(name)))
lower = $(shell echo $(1) | tr A-Z a-z)
PLACES = $(foreach name,$(GIVEN),$(call lower,$(name))="$(if $(filter drawn,$($(name))),drawn,$$(realpath "$($(name))"))")
CHECK_PLACES = @$(foreach name,$(GIVEN),test "$($(name))" = drawn || test -e "$($(name))" || { echo "There is no file or folder $($(name))"; exit 2; };)

.PHONY: help install demo test test-jax test-app test-kill test-slurm report worth tune search audit lint pictures benchmarks clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make install  the environment in .venv; BACKEND=gpu for CUDA (default: cpu), PYTHON=python3.12 for another Python"
	@echo "make test-jax  the tests of model, training, evaluation and maps on JAX"
	@echo "make test-kill  runs killed at random moments, a full disk, read-only outputs: nothing may be lost; half an hour"
	@echo "make test-slurm  a suite on a Slurm of two nodes on this machine; root and Debian's slurm-wlm and munge, else skipped"
	@echo "make audit    known vulnerabilities of what is installed, by pip-audit"
	@echo "make lint     ruff on code and notebooks"

install: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"fer-keras needs Python 3.11 to 3.13, and {sys.executable} is {v[0]}.{v[1]}. Use make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(BACKEND),sweep,search,test]'
	@touch $@

demo: $(READY)
	$(SNAKEMAKE) --config suite=demo

report: $(READY)
	@test -n "$(DATA)" || { echo "Say where the faces are: make report DATA=/path/to/fer2013.csv SUITE=$(SUITE)"; exit 2; }
	$(CHECK_PLACES)
	$(SNAKEMAKE) --config suite=$(SUITE) $(PLACES)

worth: $(READY)
	@test -n "$(DATA)" || { echo "Say where the faces are: make worth DATA=/path/to/fer2013.csv SIZE=$(SIZE)"; exit 2; }
	$(CHECK_PLACES)
	$(SNAKEMAKE) --config suite=$(subst $(space),$(comma),$(foreach name,official clean study,$(name)$(addprefix -,$(SIZE)))) $(PLACES)

# Of a suite on drawn faces, DATA is not needed.
tune: $(READY)
	$(CHECK_PLACES)
	$(SNAKEMAKE) --config suite=$(SUITE) sweep=$(SWEEP) $(PLACES)

search: $(READY)
	$(CHECK_PLACES)
	mkdir -p outputs/$(SUITE)/search-$(SEARCH)
	papermill notebooks/search.ipynb outputs/$(SUITE)/search-$(SEARCH)/notebook.ipynb -p suite $(SUITE) -p search $(SEARCH) $(if $(DATA),-p data "$(if $(filter drawn,$(DATA)),drawn,$$(realpath "$(DATA)"))")
	fer-keras render outputs/$(SUITE)/search-$(SEARCH)/notebook.ipynb

# Two files of tests at a time: most of a test is Python, tracing or waiting for a process.
test: $(READY)
	python -m pytest -n 2 --dist loadfile

test-jax: $(READY)
	python -m pip install --quiet --disable-pip-version-check --editable '.[jax]'
	KERAS_BACKEND=jax python -m pytest tests/test_model.py tests/test_augment.py tests/test_train.py tests/test_devices.py tests/test_evaluate.py tests/test_explain.py

test-app: $(READY)
	python -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	python -m pytest tests/browser

test-kill: $(READY)
	python tests/kill/kill.py

test-slurm: $(READY)
	python -m pip install --quiet --disable-pip-version-check --editable '.[slurm,kubernetes]'
	python -m pytest tests/test_profiles.py
	python tests/slurm/slurm.py

audit: $(READY)
	python -m pip install --quiet --disable-pip-version-check --editable '.[audit]'
	python tests/dependencies.py

lint: $(READY)
	python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	ruff check . && ruff format --check . && nbstripout --verify notebooks/*.ipynb

pictures: $(READY)
	python docs/pictures.py

clean:
	rm -rf $(VENV) .snakemake
