"""Package definition. The Makefile installs it with the extras a machine needs."""

import pathlib

import setuptools

setuptools.setup(
    name="extreme-tensoring-tf",
    version="0.1.0",
    description="Adaptive optimizers for Keras at the memory of SGD, and a "
    "language-model trainer that proves them.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(
        include=["extreme_tensoring_tf*", "trainer*"],
        exclude=["*.tests", "*.tests.*"],
    ),
    install_requires=[
        "absl-py>=2.3",
        "array-record>=0.8.6",
        "grain>=0.2.18",
        "importlib-resources>=6.0",  # tensorflow-datasets needs it, undeclared
        "keras>=3.15.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "optuna>=4.9",
        "pillow>=10",
        "scipy>=1.11",
        "sentencepiece>=0.2.3",
        "tensorboard>=2.19",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.66",
    ],
    # The backend is an extra, because it depends on the machine and pip cannot
    # see it: tensorflow-cpu and tensorflow write to the same folder, so a
    # package that requires one must never meet the other, and the optimizer runs
    # on JAX where there is no TensorFlow at all.
    extras_require={
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
            "hypothesis>=6.100",
            "ipykernel>=6.29",  # executes the notebook
            "nbclient>=0.10",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
        ],
        "examples": ["fastapi>=0.115", "uvicorn>=0.30"],
        "bench": ["psutil>=5.9"],
    },
    entry_points={
        "console_scripts": [
            "et-datagen = trainer.bin.et_datagen:run",
            "et-trainer = trainer.bin.et_trainer:run",
            "et-avg = trainer.bin.et_avg:run",
            "et-eval = trainer.bin.et_eval:run",
            "et-decoder = trainer.bin.et_decoder:run",
            "et-exporter = trainer.bin.et_exporter:run",
            "et-sweep = trainer.bin.et_sweep:run",
            "et-plan = trainer.bin.et_plan:run",
        ]
    },
)
