import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import TraceRatio
from extreme_tensoring_tf.testing.naive_reference import NaiveExtremeTensoring


def linear(optimizer):
    """Squared loss of one example with weight 1: the gradient is 2 e x^T / 19."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(19, use_bias=False, name="dense")]
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


@pytest.mark.parametrize("level", [1, 2, 3, "inf"])
def test_ratio_by_hand(level):
    epsilon = 1e-6
    model = linear(ExtremeTensoring.algorithm_1(0.01, level=level, epsilon=epsilon))
    kernel = keras.ops.convert_to_numpy(model.trainable_variables[0])
    judge = NaiveExtremeTensoring(
        kernel, level=level, epsilon=epsilon, learning_rate=0.01
    )
    x, y = np.random.default_rng(0).normal(size=(2, 1, 19))
    x = x[:, :12]
    slots = len(model.optimizer.variables)
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[TraceRatio()])
    diagonal = np.zeros((12, 19))
    for ratio in history.history["trace_ratio"]:
        gradient = 2 / 19 * x.T @ (x @ judge.x - y)
        judge.step(gradient)
        diagonal += gradient**2
        ours = (1 / judge.delta()).sum()
        expected = np.sqrt(ours / np.sqrt(diagonal + epsilon).sum())
        np.testing.assert_allclose(ratio, expected, rtol=1e-3)
        assert ratio >= 1 - 1e-6
    assert any(key.startswith("trace_ratio/") for key in history.history)
    # The sums are gone afterwards, and training goes on.
    model.fit(x, y, verbose=0)
    names = [v.name for v in model.optimizer.variables]
    assert len(names) > slots and not any("diagonal" in name for name in names)


def test_a_variable_without_entries_is_not_watched():
    class Layer(keras.layers.Layer):
        def build(self, input_shape):
            self.empty = self.add_weight(shape=(0, 5), name="empty")
            self.kernel = self.add_weight(shape=(6, 1), name="kernel")

        def call(self, x):
            return x @ self.kernel + keras.ops.sum(self.empty)

    model = keras.Sequential([keras.Input((6,)), Layer(name="layer")], name="net")
    model.compile(ExtremeTensoring.algorithm_1(0.01, jit_compile=False), loss="mse")
    history = model.fit(
        np.ones((2, 6)), np.ones((2, 1)), verbose=0, callbacks=[TraceRatio()]
    ).history
    assert {"trace_ratio/net/layer/kernel"} == {k for k in history if "/" in k}
    assert np.isfinite(history["trace_ratio"]).all()


def test_a_variable_that_is_orthogonalized_is_not_watched():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)], name="net")
    optimizer = ExtremeTensoring.algorithm_1(
        0.01, jit_compile=False, orthogonalize=True
    )
    model.compile(optimizer, loss="mse")
    history = model.fit(
        np.ones((2, 6)), np.ones((2, 3)), verbose=0, callbacks=[TraceRatio()]
    ).history
    (watched,) = (k for k in history if "/" in k)
    assert watched.endswith("bias") and np.isfinite(history["trace_ratio"]).all()


@pytest.mark.parametrize(
    "optimizer, pattern, message",
    [
        (
            "adam",
            ".",
            "must be an ExtremeTensoring .* Adam, {'beta_2': 0.999",
        ),
        (
            ExtremeTensoring.algorithm_1(0.1, beta_2=0.9),
            ".",
            "Received: ExtremeTensoring, {'beta_2': 0.9}",
        ),
        (
            ExtremeTensoring.algorithm_1(0.1),
            "bias",
            "no variable with statistics has a path that matches 'bias'",
        ),
        (
            ExtremeTensoring.algorithm_1(0.1, orthogonalize=True),
            "kernel",
            "no variable with statistics has a path that matches 'kernel'",
        ),
    ],
)
def test_wrong_use(optimizer, pattern, message):
    model = linear(optimizer)
    with pytest.raises(ValueError, match=message):
        model.fit(
            np.ones((1, 12)),
            np.ones((1, 19)),
            verbose=0,
            callbacks=[TraceRatio(pattern)],
        )
