import keras
import numpy as np
import pytest
from keras import ops

from trainer.inference import sampling

PROBABILITIES = np.array([0.05, 0.4, 0.3, 0.2, 0.05])
ROWS = 20_000


def frequencies(**settings):
    logits = ops.convert_to_tensor(np.tile(np.log(PROBABILITIES), (ROWS, 1)), "float32")
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": [3, 0]} | settings
    seed = ops.convert_to_tensor(settings.pop("seed"), "int32")
    found = ops.convert_to_numpy(sampling.pick(logits, seed=seed, **settings))
    return np.bincount(found, minlength=5) / ROWS


def normalized(weights):
    return weights / weights.sum()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, normalized(PROBABILITIES**2)),
        ({"temperature": 2.0}, normalized(PROBABILITIES**0.5)),
        ({"top_k": 2}, normalized(np.array([0, 0.4, 0.3, 0, 0]))),
        ({"top_k": 5}, PROBABILITIES),
        ({"top_k": 40}, PROBABILITIES),  # more than there are
        ({"top_p": 0.6}, normalized(np.array([0, 0.4, 0.3, 0, 0]))),
        ({"top_p": 0.1}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, normalized(np.array([0, 0.4, 0.3, 0, 0]))),
        ({"temperature": 0}, [0, 1, 0, 0, 0]),
        ({"temperature": 0, "top_k": 3, "top_p": 0.5}, [0, 1, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("as_tensors", [False, True], ids=["numbers", "tensors"])
def test_tokens_come_with_their_probabilities(settings, expected, as_tensors):
    if as_tensors:
        if keras.backend.backend() != "tensorflow":
            pytest.skip("for the exported graph")
        dtypes = {"temperature": "float32", "top_k": "int32", "top_p": "float32"}
        settings = {k: ops.convert_to_tensor(v, dtypes[k]) for k, v in settings.items()}
    np.testing.assert_allclose(frequencies(**settings), expected, atol=0.015)


def test_draws_follow_the_seed():
    assert (frequencies() == frequencies()).all()
    assert (frequencies() != frequencies(seed=[4, 0])).any()
    assert (frequencies() != frequencies(seed=[3, 1])).any()


def test_padding_is_not_a_token():
    logits = sampling.real_tokens(ops.convert_to_tensor([[9.0, 1.0, 2.0]]))
    np.testing.assert_array_equal(logits, [[-1e9, 1.0, 2.0]])
