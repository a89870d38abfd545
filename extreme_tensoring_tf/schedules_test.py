import keras
import numpy as np
import pytest

from extreme_tensoring_tf import InverseSqrtSchedule


def test_formula():
    schedule = InverseSqrtSchedule(3.0)
    for t in (1, 2, 5_000, 10_000, 10_001, 1_000_000):
        expected = 3.0 * min(1e-6 * t, t**-0.5)
        np.testing.assert_allclose(float(schedule(t - 1)), expected, rtol=1e-6)


def test_peak_is_where_the_branches_meet():
    schedule = InverseSqrtSchedule(1.0, warmup_slope=100**-1.5)
    rates = [float(schedule(step)) for step in range(300)]
    assert np.argmax(rates) + 1 == 100
    np.testing.assert_allclose(max(rates), 0.1, rtol=1e-5)


def test_config_round_trip():
    schedule = InverseSqrtSchedule(2.0, 1e-4, name="rate")
    serialize = keras.optimizers.schedules.serialize
    deserialize = keras.optimizers.schedules.deserialize
    restored = deserialize(serialize(schedule))
    assert restored.get_config() == schedule.get_config()


@pytest.mark.parametrize("kwargs", [{"scale": 0.0}, {"scale": 1, "warmup_slope": -1}])
def test_wrong_arguments(kwargs):
    with pytest.raises(ValueError, match="must be a positive number"):
        InverseSqrtSchedule(**kwargs)
