"""Package definition. The Makefile installs it with the extras a machine needs."""

import pathlib
import re

import setuptools
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
BINARIES = ("datagen", "trainer", "avg", "eval", "decoder", "exporter", "sweep", "plan")


class BuildWithoutTests(build_py):
    """Leaves out tests, which stand beside the modules that they test."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if not m[1].endswith(("_test", "conftest"))]


def version():
    """Returns the version, which stands in the package: nothing is imported."""
    text = (ROOT / "extreme_tensoring_tf" / "__init__.py").read_text("utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


setuptools.setup(
    name="extreme-tensoring-tf",
    version=version(),
    description="Adaptive optimizers for Keras at the memory of SGD, and a "
    "language-model trainer that proves them.",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords=["keras", "tensorflow", "jax", "optimizer", "memory"],
    python_requires=">=3.11",
    packages=setuptools.find_packages(
        include=["extreme_tensoring_tf*", "trainer*"],
        exclude=["*.testing", "*.testing.*"],
    ),
    package_data={"extreme_tensoring_tf": ["py.typed"], "trainer": ["py.typed"]},
    cmdclass={"build_py": BuildWithoutTests},
    # The optimizer's. Keras brings its own, and the backend is an extra. This Keras is
    # the oldest that TensorFlow 2.21 takes. Private methods of Keras are overridden
    # (`grouped_optimizer.KERAS_PRIVATES`): a test says which one a new Keras lacks. The
    # next major version may lack them all. `make test-install` runs the tests with the
    # lowest versions on TensorFlow, and with the newest on each backend.
    install_requires=["keras>=3.12.0,<4", "numpy>=1.26"],
    extras_require={
        "trainer": [
            "absl-py>=2.3",
            "array-record>=0.8.6",
            "grain>=0.2.18",
            "importlib-resources>=6.0",  # tensorflow-datasets needs it, undeclared
            "keras>=3.15.1",
            "matplotlib>=3.10",  # its colours, petroff10
            "optuna>=4.9",
            "pillow>=10",
            "scipy>=1.11",
            "sqlalchemy>=2",  # optuna's, whose errors are caught
            "sentencepiece>=0.2.3",
            "tensorboard>=2.19",
            "tensorflow-datasets>=4.9.10",
            "textalloc>=1.1.6",
            "tqdm>=4.66",
        ],
        # The backend depends on the machine, and pip cannot see it: tensorflow-cpu and
        # tensorflow write to the same folder, so a package that requires one must never
        # meet the other, and the optimizer runs on JAX where there is no TensorFlow.
        # The CPU wheel is 60 % smaller. It exists for Linux and Windows only.
        "cpu": [
            "tensorflow-cpu>=2.21; platform_system != 'Darwin'",
            "tensorflow>=2.21; platform_system == 'Darwin'",
        ],
        "gpu": ["tensorflow[and-cuda]>=2.21"],
        "jax": ["jax>=0.7"],
        # Others' optimizers, to check ours against.
        "reference": ["optax>=0.2.4"],
        # The same on torch, where it may be installed: pytest trainer/optim/peers.
        "reference-torch": [
            "adam-mini>=1.1.1",
            "apollo-torch>=1.0.3",
            "bitsandbytes>=0.45",  # galore-torch imports it
            "came-pytorch>=0.1.3",
            "galore-torch>=1.0",
            "torch>=2.8",
            "torchao>=0.13",
            "transformers>=4.50",  # galore-torch and apollo-torch import it
        ],
        "test": [
            "coverage>=7.10",  # measures processes that tests start
            "hypothesis>=6.100",
            "import-linter>=2.5",
            "ipykernel>=6.29",  # executes the notebook
            "kubernetes-validate>=1.30",  # has the schemas of Kubernetes' API
            "nbclient>=0.10",
            "pre-commit>=4",
            "psutil>=5.9",
            "pyright[nodejs]>=1.1.400",  # a wheel with Node.js: no download by npm
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "sybil>=9",  # runs the code of README and docs
            "tox>=4.21",
            "tox-uv>=1.25",
        ],
        # `make docs`, and the test that the site builds.
        "docs": [
            "mkdocs>=1.6",
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=1.0",
        ],
        # `make mutation`, on Keras' NumPy backend, which imports JAX.
        "mutation": ["mutmut>=3.8"],
        "examples": ["fastapi>=0.115", "sentencepiece>=0.2.3", "uvicorn>=0.30"],
        # Wheels that `make gpu-kit` brings to a machine with JAX and no network: the
        # part of the trainer that trains, and all that it imports but JAX and NumPy.
        "gpu-kit": [
            *("absl-py", "array-record", "cloudpickle", "etils", "fsspec", "grain"),
            *("h5py", "importlib-resources", "keras", "markdown-it-py", "mdurl"),
            *("more-itertools", "namex", "optree", "packaging", "portpicker"),
            *("protobuf", "psutil", "pygments", "rich", "sentencepiece", "tqdm"),
            *("typing-extensions", "zipp"),
        ],
    },
    entry_points={
        "console_scripts": [
            f"et-{name} = trainer.bin.console:et_{name}" for name in BINARIES
        ]
    },
)
