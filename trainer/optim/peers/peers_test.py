"""Beside the reference implementations, where these are installed."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.tensor_rules import EMBEDDINGS
from trainer.optim.peers import adam_family
from trainer.optim.peers import factored
from trainer.optim.peers import low_rank
from trainer.optim.peers import normalized

SHAPES = {"a": (6, 8), "b": (5,), "c": (2, 3, 4)}
# Ours (inputs, outputs); torch has (outputs, inputs), but for embeddings.
LAYERS = {
    "embedding/embeddings": (12, 8),
    "query/kernel": (8, 8),
    "key/kernel": (8, 8),
    "value/kernel": (8, 8),
    "output/kernel": (8, 8),
    "mlp/kernel": (8, 16),
    "down/mlp/kernel": (16, 8),
    "mlp/bias": (16,),
    "norm/gamma": (8,),
    "norm/beta": (8,),
}


def steps(optimizer, shapes=SHAPES, count=5):
    """Starts, gradients of every step, and the values after these, as lists."""
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=s).astype("float32") for s in shapes.values()]
    batches = [
        [rng.normal(size=s).astype("float32") for s in shapes.values()]
        for _ in range(count)
    ]
    variables = [keras.Variable(start) for start in starts]
    for variable, name in zip(variables, shapes):
        variable._path = name
    for batch in batches:
        optimizer.apply([ops.convert_to_tensor(g) for g in batch], variables)
    return starts, batches, [ops.convert_to_numpy(v) for v in variables]


def check_torch(make_optimizer, found, starts, batches, turn=lambda i, value: value):
    """Whether a torch optimizer takes the starts to what was found."""
    import torch

    values = [torch.nn.Parameter(torch.tensor(turn(*s))) for s in enumerate(starts)]
    optimizer = make_optimizer(values)
    for batch in batches:
        for i, (value, g) in enumerate(zip(values, batch)):
            value.grad = torch.tensor(turn(i, g))
        optimizer.step()
    for i, value in enumerate(values):
        value = turn(i, value.detach().numpy())
        np.testing.assert_allclose(found[i], value, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sm3_is_that_of_optax(momentum):
    optax = pytest.importorskip("optax")
    starts, batches, found = steps(factored.SM3(0.1, momentum=momentum))
    optimizer = optax.sm3(0.1, momentum=momentum)
    values, state = starts, optimizer.init(starts)
    for batch in batches:
        updates, state = optimizer.update(batch, state, values)
        values = optax.apply_updates(values, updates)
    for a, b in zip(found, values):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_came_is_that_of_its_authors():
    came = pytest.importorskip("came_pytorch")
    starts, batches, found = steps(factored.CAME(0.01))
    check_torch(
        lambda values: came.CAME(values, lr=0.01, weight_decay=0.0),
        found,
        starts,
        batches,
    )


def test_adam_mini_is_that_of_its_authors():
    adam_mini = pytest.importorskip("adam_mini")
    optimizer = adam_family.AdamMini(0.01, num_heads=2)
    starts, batches, found = steps(optimizer, LAYERS)
    names = [name.replace("beta", "bias") for name in LAYERS]

    def turn(i, value):
        return value.T.copy() if names[i].endswith("kernel") else value

    def make(values):
        named = list(zip(names, values))
        return adam_mini.Adam_mini(named, 0.01, dim=8, n_heads=2, verbose=False)

    check_torch(make, found, starts, batches, turn)


def test_adam_8bit_is_that_of_torchao():
    optim = pytest.importorskip("torchao.optim")
    shapes = {"large": (64, 128), "small": (7,)}
    starts, batches, found = steps(adam_family.Adam8bit(0.01), shapes)
    check_torch(lambda values: optim.Adam8bit(values, lr=0.01), found, starts, batches)


def test_galore_is_that_of_its_authors():
    galore = pytest.importorskip("galore_torch")
    starts, batches, found = steps(low_rank.GaLore(0.01, rank=2), LAYERS)
    check_torch(lambda v: galore.GaLoreAdamW(groups(v)), found, starts, batches)


@pytest.mark.parametrize("shape", [(6, 8), (8, 6)])
def test_galore_renews_its_projection(shape):
    """After 3 steps it spans the singular vectors of the gradient of that step."""
    optimizer = low_rank.GaLore(0.01, rank=2, update_gap=3)
    _, batches, _ = steps(optimizer, {"kernel": shape})
    left, _, right = np.linalg.svd(batches[3][0])
    vectors = left[:, :2] if shape[0] < shape[1] else right[:2].T
    found = ops.convert_to_numpy(optimizer._projections[0])
    np.testing.assert_allclose(abs(vectors.T @ found), np.eye(2), atol=1e-4)


def test_apollo_is_that_of_its_authors(monkeypatch):
    apollo = pytest.importorskip("apollo_torch")
    import torch
    from apollo_torch import random_projector

    optimizer = low_rank.APOLLO(0.01)
    starts, batches, found = steps(optimizer, LAYERS)
    drawn = iter(
        ops.convert_to_numpy(p) for p in optimizer._projections if p is not None
    )

    def projection(self, weights, rank, type, seed):
        matrix = torch.tensor(next(drawn))
        return matrix if type == "left" else matrix.T

    projector = random_projector.GradientProjector
    monkeypatch.setattr(projector, "get_orthogonal_matrix", projection)
    more = {"rank": 1, "scale": 128, "proj": "random", "scale_type": "tensor"}
    check_torch(lambda v: apollo.APOLLOAdamW(groups(v, **more)), found, starts, batches)


def groups(values, **changes):
    """Kernels, projected, and the rest, as torch wants them."""
    own = {"rank": 2, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    kernels, rest = [], []
    for name, value in zip(LAYERS, values):
        (kernels if name.endswith("kernel") else rest).append(value)
    changes.setdefault("lr", 0.01)
    return [{"params": kernels, **own, **changes}, {"params": rest, "lr": 0.01}]


def test_slim_adam_by_hand():
    """No wheel: Adam on means of squares over inputs, outputs or rows."""
    starts, batches, found = steps(adam_family.SlimAdam(0.01), LAYERS)
    for i, (name, shape) in enumerate(LAYERS.items()):
        over_inputs = name.endswith(("query/kernel", "key/kernel"))
        axis = None if len(shape) < 2 else 0 if over_inputs else 1
        x, m, v = starts[i], 0, 0
        for t, batch in enumerate(batches, start=1):
            square = batch[i] ** 2
            if axis is not None:
                square = square.mean(axis, keepdims=True)
            m, v = 0.9 * m + 0.1 * batch[i], 0.999 * v + 0.001 * square
            root = np.sqrt(v / (1 - 0.999**t)) + 1e-8
            x = x - 0.01 * m / (1 - 0.9**t) / root
        np.testing.assert_allclose(found[i], x, rtol=1e-4, atol=2e-6)


def test_smmf_by_hand():
    """No wheel: the outer products of sums stand for both moments."""
    starts, batches, found = steps(factored.SMMF(0.01))
    squares = {"a": (8, 6), "b": (5, 1), "c": (6, 4)}
    for i, shape in enumerate(squares.values()):
        x, m, v = starts[i], np.zeros(shape), np.zeros(shape)
        for t, batch in enumerate(batches, start=1):
            g = batch[i].reshape(shape)
            beta_m, beta_v = 0.9 * 0.999 ** (t - 1), 1 - t**-0.8
            m, v = beta_m * m + (1 - beta_m) * g, beta_v * v + (1 - beta_v) * g**2
            x = x - 0.01 * (m / (np.sqrt(v) + 1e-8)).reshape(x.shape)
            m, v = (
                np.outer(a.sum(1), a.sum(0)) / a.sum() * np.where(sign, 1, -1)
                for a, sign in ((abs(m), m > 0), (v, True))
            )
        np.testing.assert_allclose(found[i], x, rtol=1e-4, atol=2e-6)


OPTIMIZERS = [
    (factored.SM3, 6 + 8),
    (factored.CAME, 48 + 2 * (6 + 8)),
    (factored.SMMF, 2 * (8 + 6) + 48 // 4),
    (adam_family.AdamMini, 48 + 8),
    (adam_family.SlimAdam, 48 + 6),
    (adam_family.Adam8bit, 2 * 48),
    (low_rank.GaLore, (6 + 2 * 8) * 2),
    (low_rank.APOLLO, 6 + 2 * 8 + 1),
]


@pytest.mark.parametrize("make, scalars", OPTIMIZERS)
def test_descent_state_and_config(make, scalars):
    """All descend, keep the state that is theirs, and come back from their config."""
    from trainer.optim import optimizer_state

    rank = {"rank": 2} if make is low_rank.GaLore else {}
    optimizer = make(0.01, **rank)
    found = []
    for chosen in (optimizer, make.from_config(optimizer.get_config())):
        variable = keras.Variable(np.ones((6, 8), "float32"))
        for _ in range(3):
            chosen.apply([ops.convert_to_tensor(variable)], [variable])
        found.append(ops.convert_to_numpy(variable))
        assert found[-1].mean() < 1 - 1e-4
        assert optimizer_state.state_scalars(chosen) == scalars
    assert chosen.get_config() == optimizer.get_config()
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("optimizer", [factored.SM3(0.1), factored.CAME(0.1)])
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


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="shapes are known elsewhere"
)
@pytest.mark.parametrize("make, scalars", OPTIMIZERS)
def test_gradients_of_unknown_shape(make, scalars):
    import tensorflow as tf

    optimizer = make(0.01, **({"rank": 2} if make is low_rank.GaLore else {}))
    variable = keras.Variable(np.ones((6, 8), "float32"))
    optimizer.build([variable])

    @tf.function(input_signature=[tf.TensorSpec(None)])
    def step(gradient):
        optimizer.apply([gradient], [variable])

    step(tf.ones((6, 8)))
    assert ops.convert_to_numpy(variable).mean() < 1


def test_dynamic_map():
    """256 codes each, ascending, with both ends and a zero."""
    for signed in (True, False):
        codes = adam_family.dynamic_map(signed)
        assert len(codes) == 256 and (np.diff(codes) > 0).all()
        assert codes[-1] == 1 and 0 in codes


def polar(g):
    u, s, v = np.linalg.svd(g, full_matrices=False)
    return (u * (s > 1e-6 * s[0])) @ v  # a standardized square matrix has one s of 0


def swan(g, _):
    g = (g - g.mean(axis=0)) / g.std(axis=0)
    factor = polar(g)
    return factor * np.linalg.norm(g) / np.linalg.norm(factor)


def sinkgd(g, _):
    for _ in range(5):
        g = g / np.sqrt((g**2).mean(axis=0))
        g = g / np.sqrt((g**2).mean(axis=1, keepdims=True))
    return 0.05 * g


def scale(g, _):
    return g / np.linalg.norm(g, axis=0)


def racs(g, state):
    q = np.ones(g.shape[0])
    for _ in range(5):
        s = (q @ g**2) / (q**2).sum()
        q = (g**2 @ s) / (s**2).sum()
    state["s"] = 0.9 * state.get("s", 0) + 0.1 * s
    state["q"] = 0.9 * state.get("q", 0) + 0.1 * q
    g = g / np.sqrt(np.outer(state["q"], state["s"]))
    norm = np.linalg.norm(g)
    factor = 1.01 / max(norm / state["norm"], 1.01) if "norm" in state else 1
    state["norm"] = factor * norm
    return 0.05 * factor * g


def normuon(g, state):
    state["m"] = 0.95 * state.get("m", 0) + 0.05 * g
    factor = polar(0.05 * g + 0.95 * state["m"])
    state["v"] = 0.95 * state.get("v", 0) + 0.05 * (factor**2).mean(axis=0)
    scaled = factor / np.sqrt(state["v"])
    scaled *= np.linalg.norm(factor) / np.linalg.norm(scaled)
    return 0.2 * np.sqrt(max(g.shape)) * scaled


NORMALIZED = {
    "SWAN": swan,
    "SinkGD": sinkgd,
    "SCALE": scale,
    "RACS": racs,
    "NorMuon": normuon,
}


@pytest.mark.parametrize("rest", ["adam", "et"])
@pytest.mark.parametrize("name", NORMALIZED)
def test_normalized_directions(name, rest):
    """Matrices against NumPy; what is no matrix moves as Adam or our form does."""
    optimizer = getattr(normalized, name)(0.1, rest=rest)
    starts, batches, found = steps(optimizer, LAYERS)
    if rest == "adam":
        other = keras.optimizers.Adam(0.1, epsilon=1e-8)
    else:
        other = ExtremeTensoring(0.1, "inf", tensor_dims={EMBEDDINGS: ("et2", 1)})
    moved = {n: s for n, s in LAYERS.items() if "kernel" not in n}
    places = [i for i, n in enumerate(LAYERS) if n in moved]
    variables = [keras.Variable(starts[i]) for i in places]
    for variable, path in zip(variables, moved):
        variable._path = path
    for batch in batches:
        other.apply([ops.convert_to_tensor(batch[i]) for i in places], variables)
    expected = dict(zip(moved, map(ops.convert_to_numpy, variables)))
    for i, (path, start) in enumerate(zip(LAYERS, starts)):
        if "kernel" in path:
            value, state = start.astype("float64"), {}
            for batch in batches:
                g = batch[i].astype("float64")
                value = value - 0.1 * NORMALIZED[name](g, state)
            expected[path] = value
        elif name == "SCALE" and rest == "adam" and "embedding" in path:
            value, m = start.astype("float64"), 0
            for batch in batches:
                m = 0.9 * m + 0.1 * batch[i]
                value = value - 0.1 * m / np.linalg.norm(m, axis=1, keepdims=True)
            expected[path] = value
        np.testing.assert_allclose(
            found[i], expected[path], rtol=2e-3, atol=5e-4, err_msg=path
        )


EVERY_PEER = [make for make, _ in OPTIMIZERS]
EVERY_PEER += [getattr(normalized, name) for name in NORMALIZED]


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the others have no sparse gradient"
)
@pytest.mark.parametrize("make", EVERY_PEER)
@pytest.mark.parametrize("path", ["embedding/embeddings", "dense/kernel"])
def test_sparse_gradients_move_as_dense_ones(make, path):
    """A row that a batch looks up twice has the sum of both for its gradient."""
    import tensorflow as tf

    moved = []
    for sparse in (True, False):
        optimizer = make(0.1)
        variable = keras.Variable(np.ones((12, 8), "float32"))
        variable._path = path
        for step in range(3):
            rows = tf.random.stateless_normal((3, 8), [step, 0])
            gradient = tf.IndexedSlices(rows, [1, 1, 3], [12, 8])
            if not sparse:
                gradient = tf.convert_to_tensor(gradient)
            optimizer.apply([gradient], [variable])
        moved.append(ops.convert_to_numpy(variable))
    assert np.abs(moved[0] - 1).max() > 1e-3
    np.testing.assert_array_equal(*moved)


@pytest.mark.parametrize("make", EVERY_PEER)
@pytest.mark.parametrize(
    "path, shape",
    [
        ("gate/kernel", (8, 1)),
        ("attention/query/kernel", (8, 2, 4)),
        ("attention/value/kernel", (8, 2, 4)),
        ("convolution/kernel", (3, 3, 4, 8)),
        ("temperature", ()),
    ],
)
def test_variables_of_any_shape(make, path, shape):
    """Those of Keras' own layers, narrower than a projection's rank or with heads."""
    if "query" in path and make is adam_family.AdamMini:
        make = functools.partial(make, num_heads=2)
    optimizer = make(0.1)
    variable = keras.Variable(np.ones(shape, "float32"))
    variable._path = path
    for _ in range(2):
        optimizer.apply([ops.ones(shape) * 0.1], [variable])
    value = ops.convert_to_numpy(variable)
    assert np.isfinite(value).all()
    # Outputs of equal inputs have no deviation to standardize by.
    assert (value < 1).any() or make is normalized.SWAN


def test_slim_adam_averages_over_outputs():
    """The last axis of kernels that are no queries or keys."""
    optimizer = adam_family.SlimAdam(0.1)
    variable = keras.Variable(np.ones((3, 5, 7, 11), "float32"), name="kernel")
    optimizer.build([variable])
    assert optimizer._means[0].shape == (3, 5, 7, 1)


def test_moments_of_8_bits_of_small_gradients():
    """Steps are near Adam's where squares are below torchao's least scale, 1e-12."""
    values = []
    for make in (adam_family.Adam8bit, keras.optimizers.Adam):
        variable = keras.Variable(np.zeros((64, 64), "float32"), name="kernel")
        optimizer = make(1e-3, beta_2=0.9)
        rng = np.random.default_rng(0)
        for _ in range(20):
            g = 3e-7 * rng.normal(size=(64, 64)).astype("float32")
            optimizer.apply([ops.convert_to_tensor(g)], [variable])
        values.append(ops.convert_to_numpy(variable))
    rms = [np.sqrt((v**2).mean()) for v in values]
    assert rms[0] < 2 * rms[1]


@pytest.mark.parametrize("make", [normalized.RACS, low_rank.APOLLO])
def test_a_matrix_whose_first_gradient_is_zero_moves_later(make):
    optimizer = make(0.1)
    variable = keras.Variable(np.zeros((6, 8), "float32"), name="kernel")
    optimizer.apply([ops.zeros((6, 8))], [variable])
    optimizer.apply([ops.ones((6, 8))], [variable])
    assert np.abs(ops.convert_to_numpy(variable)).max() > 1e-4
