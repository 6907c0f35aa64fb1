# `make demo`, `make test` and `make check` each work as the first command on a bare clone: they make .venv, install what
# they need into it and run. A working NVIDIA driver adds the CUDA extra that fits it.
#
#   make demo ARGS="--loss mse --epochs 5"     options of `python -m dnnprims demo`
#   make test ARGS="-k softmax"                options of pytest
#   make test PY=/path/to/python               that interpreter as it is; nothing is made or installed

.DEFAULT_GOAL := help
.PHONY: help demo test check doctor verify clean
.DELETE_ON_ERROR:

PYTHON3 ?= python3
JOBS ?= auto
ARGS ?=
comma := ,

ifdef PY
PYTHON := $(PY)
else
PYTHON := .venv/bin/python
ifneq ($(filter demo test doctor verify,$(MAKECMDGOALS)),)
CUDA := $(shell $(PYTHON3) tools/cuda_extra.py)
endif
DEMO := .venv/.stamp-demo$(addprefix -,$(CUDA))
TEST := .venv/.stamp-test-$(or $(CUDA),compile)
CHECK := .venv/.stamp-dev
endif

help:
	@echo "make demo     train a classifier of handwritten digits through the public API"
	@echo "make test     run the tests on every backend that works here"
	@echo "make check    format, lint and types"
	@echo "make doctor   say which layer of the installation fails, and what to do"
	@echo "make verify   run the conformance cases against the float64 reference"

demo: $(DEMO)
	@$(PYTHON) -m dnnprims demo $(ARGS)

test: $(TEST)
	@$(PYTHON) -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

check: $(CHECK)
	@$(PYTHON) tools/check.py $(ARGS)

doctor: $(DEMO)
	@$(PYTHON) -m dnnprims doctor $(ARGS)

verify: $(DEMO)
	@$(PYTHON) -m dnnprims verify $(ARGS)

clean:
	rm -rf .venv build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON3) -c 'import sys; sys.exit("Python 3.10 or later is needed: make PYTHON3=/path/to/python3" if sys.version_info < (3, 10) else 0)'
	@echo "making .venv"
	@$(PYTHON3) -m venv .venv || { rm -rf .venv; echo "python3 has no venv module: install it (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

# The stem names the extras, joined by "-". Two CuPy wheels share one folder, so the other one goes first.
.venv/.stamp-%: pyproject.toml | .venv/bin/python
	@$(if $(findstring cuda12x,$*),$(PYTHON) -m pip uninstall -q -y cupy-cuda13x 2>/dev/null)
	@$(if $(findstring cuda13x,$*),$(PYTHON) -m pip uninstall -q -y cupy-cuda12x 2>/dev/null)
	@echo "installing dnnprims[$(subst -,$(comma),$*)] into .venv"
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e ".[$(subst -,$(comma),$*)]"
	@touch $@
