"""Settings and fixtures of every test run."""

import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_configure():
    """Two logical CPU devices, for tests of distribution."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend == "jax":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    if backend != "tensorflow":
        return
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )


PROBLEM = "languagemodel_lm1b2k_packed"
TESTDATA = pathlib.Path(__file__).parent / "testdata"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Packed rows of 32 tokens made from the head of testdata's corpus."""
    from testdata import generate
    from trainer import datagen
    from trainer import registry

    folder = tmp_path_factory.mktemp("data")
    generate.write_corpus(folder / "text", train_sentences=(1500, 500), dev=200)
    datagen.generate(
        registry.problems.get(PROBLEM), folder / "text", folder, max_length=32
    )
    return folder
