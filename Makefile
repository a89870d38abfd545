# Every target makes the environment it needs. `make demo` and `make test` come first.
PYTHON ?= python3
BIN := .venv/bin
# TensorFlow's CUDA build where there is an NVIDIA driver, its CPU build elsewhere.
BACKEND ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
KIT_PYTHON ?= 3.12
EXTRAS = $(BACKEND),trainer,test,bench,examples,docs
# Without this TensorFlow greets with four lines on every start.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-all test-faults test-keras lint format docs benchmark benchmark-gpu \
  gpu-kit clean

# setup.py is the only thing that says what is installed; touch it to re-install.
.venv/installed .venv-jax/installed .venv-keras/installed: setup.py
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(@D)/bin/python -e '.[$(EXTRAS)]' $(PINS); \
	else \
	  $(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -e '.[$(EXTRAS)]' $(PINS); \
	fi
	touch $@
.venv-jax/installed: BACKEND := jax,reference
# The lowest Keras that setup.py admits for the optimizer.
.venv-keras/installed: EXTRAS := cpu,test,bench
.venv-keras/installed: PINS = keras==$(shell \
  sed -n 's/.*install_requires=\["keras>=\([0-9.]*\)".*/\1/p' setup.py)

demo: .venv/installed
	$(BIN)/python -m trainer.experiments.memory_performance --scale=demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist=worksteal

# Slow tests, and on JAX too, where TensorFlow is not installed, the optimizer and
# runs that are trained together.
test-all: test .venv-jax/installed
	$(BIN)/python -m pytest -m slow
	KERAS_BACKEND=jax .venv-jax/bin/python -m pytest extreme_tensoring_tf \
	  trainer/optim/peers trainer/training/population_test.py \
	  examples/programs_test.py "docs_test.py::test_every_block_runs[distributed.md]" \
	  -m "slow or not slow"

# Kills, full disks, damage, long runs: docs/faults.md. Mounts small disks, as root.
test-faults: .venv/installed .venv-jax/installed
	$(BIN)/python -m pytest faults -m "faults or not faults"
	KERAS_BACKEND=jax .venv-jax/bin/python -m pytest faults/kills_test.py -m faults

# The optimizer on the lowest Keras that it admits; `make test` has the newest.
test-keras: .venv-keras/installed
	.venv-keras/bin/python -m pytest extreme_tensoring_tf

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --project pyproject.toml

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, in build/site. A link that leads nowhere is an error, as any warning is.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

benchmark: .venv/installed
	$(BIN)/python -m benchmarks

# On a CUDA machine; DATA and PROBLEM name packed rows. See docs/benchmarks.md.
benchmark-gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu \
	  --data_dir=$(DATA) --problem=$(PROBLEM)

# The same for a machine without a network: a folder with a `run.sh`.
gpu-kit: .venv/installed
	$(BIN)/python -m benchmarks.gpu_kit --python_version=$(KIT_PYTHON) \
	  --data_dir=$(DATA) --problem=$(PROBLEM)

clean:
	rm -rf .venv .venv-jax .venv-keras *.egg-info build demo_output gpu_kit
