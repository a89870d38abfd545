# Every target makes .venv by itself. `make demo` and `make test` need nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# TensorFlow's CUDA build where there is an NVIDIA driver, its CPU build elsewhere.
BACKEND ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
# Without this TensorFlow greets with four lines on every start.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test lint format benchmark clean

# setup.py is the only thing that says what is installed; touch it to re-install.
$(VENV)/installed: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(BIN)/python -e '.[$(BACKEND),test,bench]'; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -e '.[$(BACKEND),test,bench]'; \
	fi
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m trainer.experiments.memory_performance --preset=demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/installed
	$(BIN)/python -m benchmarks.optimizer_step

clean:
	rm -rf $(VENV) *.egg-info build demo_output
