"""Settings and fixtures of every test run."""

import os
import pathlib

import hypothesis
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# A test fails for what it finds, not for how long a busy machine takes to find it.
hypothesis.settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")


def pytest_configure():
    """Several CPU devices, for tests of distribution: 8 on JAX, 2 on TensorFlow."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend == "jax":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    if backend != "tensorflow":
        return
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )


def pytest_sessionfinish(session, exitstatus):
    """A module that skipped itself, being of another backend, is no error."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter and reporter.stats.get("skipped")
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and skipped:
        session.exitstatus = pytest.ExitCode.OK


PROBLEM = "languagemodel_lm1b2k_packed"
TESTDATA = pathlib.Path(__file__).parent / "testdata"


def unmeasured_environment():
    """Returns the environment of a process that `make coverage` does not look into.

    That of a test that bounds or measures what a process takes: coverage takes some.
    """
    return {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Packed rows of 32 tokens made from the head of testdata's corpus."""
    from testdata import generate
    from trainer import registry
    from trainer.data import datagen

    folder = tmp_path_factory.mktemp("data")
    generate.write_corpus(folder / "text", train_sentences=(1500, 500), dev=200)
    datagen.generate(
        registry.problems.get(PROBLEM), folder / "text", folder, max_length=32
    )
    return folder


@pytest.fixture(scope="session")
def trained(data_dir, tmp_path_factory):
    """A small model after some steps, as `trained_model.load` gives it."""
    from trainer.hparams import HParams
    from trainer.runs import run_folder
    from trainer.runs import trained_model
    from trainer.training import loop
    from trainer.training.run import Run

    output_dir = str(tmp_path_factory.mktemp("trained"))
    hparams = HParams(
        num_hidden_layers=2,
        hidden_size=32,
        filter_size=64,
        num_heads=2,
        batch_size=512,
        learning_rate_warmup_steps=20,
        ema_momentum=0.9,
    )
    run = Run(PROBLEM, str(data_dir), hparams, 60, output_dir)
    loop.train(run, lambda: run_folder.record_start(output_dir, ""))
    return trained_model.load(output_dir)


@pytest.fixture(scope="session")
def dev(trained, data_dir):
    """Its evaluation on the dev split."""
    from trainer.evaluation import evaluation

    return evaluation.evaluate_model(
        trained.model, data_dir, trained.description, "dev", 512
    )


@pytest.fixture(scope="session")
def saved_model(trained, dev, tmp_path_factory):
    """Its export."""
    from trainer.inference import exporting

    folder = tmp_path_factory.mktemp("models") / "lm" / "1"
    return exporting.export(trained, folder, evaluations={"dev": dev}, command="me")
