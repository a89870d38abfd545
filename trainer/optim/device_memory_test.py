"""The plan for several devices is what they hold, and sum, in a compiled step (JAX)."""

import keras
import pytest

from benchmarks import scaling
from extreme_tensoring_tf import memory_report
from trainer import distribution
from trainer.optim import device_memory

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="keras.distribution is for JAX"
)


@pytest.fixture(autouse=True)
def on_one_device_again():
    yield
    keras.distribution.set_distribution(None)


@pytest.mark.parametrize("size", scaling.SIZES)
def test_eight_devices_hold_and_sum_what_the_plan_says(size):
    model, found = scaling.measured(size, "adam")
    assert distribution.devices() == 8
    report = memory_report(model.trainable_variables, ["adam"])
    planned = device_memory.shares(report, 8)[0]
    assert found["weights"] == planned.weights
    assert found["state"] == planned.state
    # XLA on a CPU sums the two gradients of a tied embedding by themselves.
    _, hidden, _, vocabulary = scaling.SIZES[size]
    twice = 2 * 7 / 8 * 4 * vocabulary * hidden
    assert found["wire"] == pytest.approx(planned.wire + twice, rel=1e-3)


def test_bytes_of_sums_are_read_from_a_program():
    text = """
      %a = f32[2,3]{1,0} all-reduce(%x), channel_id=1
      %b = (bf16[8]{0}, f32[]) all-reduce(%y, %z), to_apply=%sum
      %c = f32[100]{0} add(%x, %y)
    """
    assert scaling.summed_bytes(text) == 4 * 6 + 2 * 8 + 4
