import keras
import numpy as np
import pytest
from keras import ops

from trainer.optim.gradient_norm import GradientNorm


def model_and_data():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    return model, x, x[:, :2]


class Reporting(keras.optimizers.SGD):
    """Knows the squares of gradients by itself."""

    def report_gradient_norm(self, variable):
        object.__setattr__(self, "reported_to", variable)  # not of its own state

    def apply(self, grads, trainable_variables=None):
        norm = ops.sqrt(sum(ops.sum(ops.square(g)) for g in grads))
        self.reported_to.assign(norm)
        super().apply(grads, trainable_variables)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="see GradientNorm")
def test_an_optimizer_that_knows_the_norm_reports_it():
    optimizer = GradientNorm(Reporting(0.1))
    variable = keras.Variable([0.0, 0.0], name="v")
    optimizer.build([variable])
    optimizer._norm_of = None  # no second pass
    optimizer.apply([ops.convert_to_tensor([3.0, 4.0])])
    assert float(optimizer.norm) == 5.0
    assert "norm" not in {v.name for v in optimizer.inner_optimizer.variables}


@pytest.mark.parametrize("scaled", [False, True])
def test_it_is_the_norm_and_the_step_is_the_same(scaled):
    """Of a loss mean((x w + b - y)^2), whose gradient is known."""
    plain, x, y = model_and_data()
    w, b = plain.get_weights()
    difference = 2 * (x @ w + b - y) / y.size
    squares = [(x.T @ difference) ** 2, difference.sum(0) ** 2]
    expected = np.sqrt(sum(s.sum() for s in squares))
    watched, _, _ = model_and_data()
    inner = keras.optimizers.SGD(0.1)
    if scaled:
        inner = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
    optimizer = GradientNorm(inner)
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    watched.compile(optimizer, "mse", auto_scale_loss=False)
    for model in (plain, watched):
        model.fit(x, y, batch_size=8, verbose=0)
    if keras.backend.backend() == "jax":
        watched.jax_state_sync()
    norm = ops.convert_to_numpy(optimizer.norm)
    np.testing.assert_allclose(norm, expected, rtol=1e-5)
    for a, c in zip(plain.get_weights(), watched.get_weights()):
        np.testing.assert_allclose(a, c, rtol=1e-5)
    assert int(optimizer.iterations) == 1


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the others have no sparse gradient"
)
def test_a_row_that_is_looked_up_twice_counts_as_one():
    import tensorflow as tf

    optimizer = GradientNorm(keras.optimizers.SGD(0.1))
    variable = keras.Variable(np.ones((4, 1), "float32"))
    optimizer.build([variable])
    twice = tf.IndexedSlices([[1.0], [2.0], [4.0]], [1, 1, 3], [4, 1])
    optimizer.apply([twice], [variable])
    np.testing.assert_allclose(ops.convert_to_numpy(optimizer.norm), 5.0)
