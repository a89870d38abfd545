"""`stateless_apply` inside of JAX' transformations: the steps of a plain loop."""

import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring

if keras.backend.backend() != "jax":
    pytest.skip("JAX' transformations", allow_module_level=True)

import jax
import jax.numpy as jnp

STEPS = 4
FORMS = {
    "rank_one": {},
    "momentum": {"beta_1": 0.9},
    "orthogonal": {"orthogonalize": True},
    "algorithm_1": {"preconditioner": "geometric_mean", "beta_2": None},
}


def start(seed=0, **form):
    """Returns an optimizer, its state, and weights: a kernel and a bias."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=shape).astype("f4") for shape in ((6, 10), (10,))]
    variables = [
        keras.Variable(w, name=name) for w, name in zip(weights, ("kernel", "bias"))
    ]
    optimizer = ExtremeTensoring(0.01, **form)
    optimizer.build(variables)
    state = [np.asarray(v.value) for v in optimizer.variables]
    return optimizer, state, weights


def batches(seed=0):
    return np.random.default_rng(seed + 1).normal(size=(STEPS, 8, 6)).astype("f4")


def loss_of(weights, x):
    kernel, bias = weights
    return jnp.mean(jnp.square(jnp.tanh(x @ kernel + bias) - 0.5))


def step_of(optimizer, loss=loss_of):
    def step(weights, state, x):
        gradients = jax.grad(loss)(weights, x)
        return optimizer.stateless_apply(state, gradients, weights)

    return step


def looped(step, weights, state, xs):
    for x in xs:
        weights, state = step(weights, state, x)
    return weights, state


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


@pytest.fixture
def expected(form):
    optimizer, state, weights = start(**form)
    return looped(step_of(optimizer), weights, state, batches())


def test_donated_buffers(form, expected):
    """No input comes back as it is: each can be given away at every step."""
    optimizer, state, weights = start(**form)
    step = jax.jit(step_of(optimizer), donate_argnums=(0, 1))
    given = jax.tree.map(jnp.array, (weights, state))
    first = step(*given, batches()[0])
    assert all(x.is_deleted() for x in given[0])
    assert_same(looped(step, *first, batches()[1:]), expected)


def test_scan(form, expected):
    optimizer, state, weights = start(**form)
    step = step_of(optimizer)

    @jax.jit
    def train(weights, state, xs):
        def body(carry, x):
            return tuple(step(*carry, x)), None

        return jax.lax.scan(body, (weights, state), xs)[0]

    arrays = jax.tree.map(jnp.array, (weights, state))
    assert_same(train(*arrays, batches()), expected)


def test_checkpoint(form, expected):
    optimizer, state, weights = start(**form)
    step = jax.jit(step_of(optimizer, jax.checkpoint(loss_of)))
    assert_same(looped(step, weights, state, batches()), expected)


def test_vmap(form):
    """Over runs of other weights and other batches."""
    seeds = (0, 1, 2)
    optimizer, state, _ = start(**form)
    weights = [start(seed, **form)[2] for seed in seeds]
    xs = [batches(seed) for seed in seeds]
    step = jax.jit(jax.vmap(step_of(optimizer)))
    stacked = jax.tree.map(lambda *each: np.stack(each), *weights)
    states = [np.stack([s] * len(seeds)) for s in state]
    found = looped(step, stacked, states, np.stack(xs, axis=1))
    for number, (own, batch) in enumerate(zip(weights, xs)):
        expected = looped(step_of(optimizer), own, state, batch)
        assert_same(jax.tree.map(lambda x, i=number: x[i], found), expected)


def test_no_rank_is_raised_by_itself(form):
    """Whoever looks for wrong shapes has JAX refuse it."""
    with jax.numpy_rank_promotion("raise"):
        optimizer, state, weights = start(**form, global_clipnorm=0.1)
        gradients = [jnp.ones_like(w) for w in weights]
        optimizer.stateless_apply(state, gradients, weights)
