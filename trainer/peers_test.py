"""Beside the reference implementations, where these are installed."""

import keras
import numpy as np
import pytest
from keras import ops

from trainer import peers

SHAPES = [(6, 8), (5,), (2, 3, 4)]


def steps(optimizer, count=5):
    """Values after every step on seeded gradients, and these."""
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=s).astype("float32") for s in SHAPES]
    batches = [
        [rng.normal(size=s).astype("float32") for s in SHAPES] for _ in range(count)
    ]
    variables = [keras.Variable(start) for start in starts]
    for batch in batches:
        optimizer.apply([ops.convert_to_tensor(g) for g in batch], variables)
    return starts, batches, [ops.convert_to_numpy(v) for v in variables]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sm3_is_that_of_optax(momentum):
    optax = pytest.importorskip("optax")
    starts, batches, found = steps(peers.SM3(0.1, momentum=momentum))
    optimizer = optax.sm3(0.1, momentum=momentum)
    values, state = starts, optimizer.init(starts)
    for batch in batches:
        updates, state = optimizer.update(batch, state, values)
        values = optax.apply_updates(values, updates)
    for a, b in zip(found, values):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_came_is_that_of_its_authors():
    came = pytest.importorskip("came_pytorch")
    import torch

    starts, batches, found = steps(peers.CAME(0.01))
    values = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    optimizer = came.CAME(values, lr=0.01, weight_decay=0.0)
    for batch in batches:
        for value, g in zip(values, batch):
            value.grad = torch.tensor(g)
        optimizer.step()
    for a, b in zip(found, values):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [peers.SM3(0.1), peers.CAME(0.1)])
def test_first_step_and_config(optimizer):
    """After one gradient of equal entries SM3 steps by its sign, CAME by less."""
    variable = keras.Variable(np.zeros((3, 4), "float32"))
    same = type(optimizer).from_config(optimizer.get_config())
    for chosen in (optimizer, same):
        variable.assign(np.zeros((3, 4)))
        chosen.apply([2 * ops.ones((3, 4))], [variable])
        moved = ops.convert_to_numpy(variable)
        assert (moved < 0).all() and np.ptp(moved) < 1e-6
    assert same.get_config() == optimizer.get_config()
    if optimizer.name == "sm3":
        np.testing.assert_allclose(moved, -0.1, rtol=1e-5)
        assert sum(v.shape[0] for vs in optimizer._maxima for v in vs) == 7
