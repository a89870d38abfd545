"""What Keras promises of every optimizer, for ours beside Adam.

The list is that of Keras' own optimizer tests.
"""

import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.testing.replicas import two_replicas

OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "default": ExtremeTensoring,
    "algorithm_1": ExtremeTensoring.algorithm_1,
    "momentum": lambda *a, **k: ExtremeTensoring(
        *a, beta_1=0.9, beta_2=0.99, momentum_dtype="bfloat16", **k
    ),
    "orthogonal": lambda *a, **k: ExtremeTensoring(*a, orthogonalize=".*", **k),
    "recommended": ExtremeTensoring.orthogonal,
}
only_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own habit"
)
only_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX's own habit"
)


# What holds for Adam shows that the tests ask for what Keras promises.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "adam" else name
    for name in OPTIMIZERS
]


@pytest.fixture(params=NAMES)
def make(request):
    return OPTIMIZERS[request.param]


@pytest.fixture(params=[name for name in NAMES if name != "recommended"])
def make_exact(request):
    """Makes those that neither round a variable at random nor refuse a constraint."""
    return OPTIMIZERS[request.param]


def variable(shape=(4, 6), seed=0, name="kernel", **kwargs):
    """A variable by whose name the recommended form knows a matrix."""
    value = np.random.default_rng(seed).normal(size=shape)
    return keras.Variable(value, dtype="float32", name=name, **kwargs)


def gradient(seed, shape=(4, 6)):
    value = np.random.default_rng(100 + seed).normal(size=shape)
    return ops.convert_to_tensor(value, "float32")


def value(x):
    return ops.convert_to_numpy(x)


def model(optimizer, **compile_kwargs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    )
    model.compile(optimizer=optimizer, loss="mse", **compile_kwargs)
    return model


def data():
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    return x, x[:, :1] * x[:, 1:2]


def test_weight_decay_and_exclusions(make_exact):
    grad = ops.zeros((4, 6))
    kept, by_name, by_object = (
        variable(name=n) for n in ("kernel", "bias", "embedding")
    )
    before = value(kept)
    optimizer = make_exact(0.5, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"], var_list=[by_object])
    optimizer.apply([grad] * 3, [kept, by_name, by_object])
    np.testing.assert_allclose(value(kept), before * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(value(by_name), before)
    np.testing.assert_array_equal(value(by_object), before)


def test_accumulated_gradients_are_their_mean(make):
    once, often = variable(), variable()
    single, accumulating = make(0.1), make(0.1, gradient_accumulation_steps=2)
    for step in range(3):
        g = gradient(step)
        single.apply([g], [once])
        accumulating.apply([g * 0.5], [often])
        accumulating.apply([g * 1.5], [often])
    np.testing.assert_allclose(value(once), value(often), rtol=1e-5, atol=1e-6)


def test_exponential_moving_average_of_weights(make):
    averaged, plain = variable(), variable()
    optimizer = make(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    reference = make(0.1)
    mean = value(plain) * 0
    for step in range(3):
        optimizer.apply([gradient(step)], [averaged])
        reference.apply([gradient(step)], [plain])
        # Keras starts the average at the first step's value.
        mean = 0.5 * mean + 0.5 * value(plain) if step else value(plain)
    np.testing.assert_allclose(value(averaged), mean, rtol=1e-5, atol=1e-6)


def test_constraint_is_applied(make_exact):
    kernel = variable()
    kernel.constraint = keras.constraints.NonNeg()
    make_exact(0.1).apply([gradient(0)], [kernel])
    assert (value(kernel) >= 0).all()


def test_loss_scale_factor_cancels(make):
    plain, scaled = variable(), variable()
    reference, optimizer = make(0.1), make(0.1, loss_scale_factor=128.0)
    for step in range(2):
        reference.apply([gradient(step)], [plain])
        optimizer.apply([gradient(step) * 128.0], [scaled])
    np.testing.assert_allclose(value(plain), value(scaled), rtol=1e-5)
    assert float(optimizer.scale_loss(ops.convert_to_tensor(2.0))) == 256.0


def test_loss_scale_optimizer_skips_overflow(make):
    if keras.backend.backend() == "jax":
        pytest.skip("Keras' own class needs a stateless scope there; see fit below")
    kernel = variable()
    optimizer = keras.optimizers.LossScaleOptimizer(make(0.1), initial_scale=4.0)
    optimizer.apply([gradient(0) * 4.0], [kernel])
    before = value(kernel)
    optimizer.apply([gradient(1) * np.inf], [kernel])
    np.testing.assert_array_equal(value(kernel), before)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(make, policy):
    if policy == "mixed_float16" and keras.backend.backend() == "torch":
        pytest.skip("torch has no float16 matmul on every CPU")
    keras.config.set_dtype_policy(policy)
    try:
        fitted = model(make(0.02))
    finally:
        keras.config.set_dtype_policy("float32")
    losses = fitted.fit(*data(), epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_learning_rate_can_be_set_and_scheduled(make):
    fitted = model(make(0.1))
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))
    fitted.fit(*data(), epochs=3, verbose=0, callbacks=[rates])
    np.testing.assert_allclose(
        float(fitted.optimizer.learning_rate), 0.1 / 3, rtol=1e-6
    )
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    scheduled = make(schedule)
    scheduled.apply([gradient(0)], [variable()])
    assert float(scheduled.learning_rate) < 0.1


def test_config_get_and_pickle(make):
    optimizer = make(0.1, weight_decay=0.01)
    config = keras.optimizers.serialize(optimizer)
    restored = keras.optimizers.get(config)
    assert restored.get_config() == optimizer.get_config()
    assert pickle.loads(pickle.dumps(optimizer)).get_config() == restored.get_config()


def test_saved_variables_continue(make):
    kernel, optimizer = variable(), make(0.1)
    optimizer.apply([gradient(0)], [kernel])
    other, restored = keras.Variable(value(kernel), name="kernel"), make(0.1)
    restored.build([other])
    for target, source in zip(restored.variables, optimizer.variables):
        target.assign(source)
    for step in (1, 2):
        optimizer.apply([gradient(step)], [kernel])
        restored.apply([gradient(step)], [other])
    np.testing.assert_array_equal(value(kernel), value(other))


def test_none_gradients_are_left_out(make):
    kernel, bias = variable(), variable((6,))
    optimizer = make(0.1)
    before = value(bias)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([gradient(0), None], [kernel, bias])
    np.testing.assert_array_equal(value(bias), before)


@only_tensorflow
def test_tf_checkpoint_continues_bit_for_bit(make, tmp_path):
    import tensorflow as tf

    def state():
        kernel, optimizer = variable(), make(0.1)
        optimizer.build([kernel])
        return kernel, optimizer, tf.train.Checkpoint(v=kernel.value, o=optimizer)

    kernel, optimizer, checkpoint = state()
    optimizer.apply([gradient(0)], [kernel])
    path = checkpoint.save(tmp_path / "ckpt")
    other, restored, target = state()
    target.restore(path)
    for step in (1, 2):
        optimizer.apply([gradient(step)], [kernel])
        restored.apply([gradient(step)], [other])
    np.testing.assert_array_equal(value(kernel), value(other))


@only_tensorflow
def test_mixed_with_tf_variables(make):
    import tensorflow as tf

    kernel, bare = variable(), tf.Variable(np.ones((5, 3), "float32"), name="kernel")
    optimizer = make(0.1)
    for step in range(2):
        optimizer.apply([gradient(step), gradient(step, (5, 3))], [kernel, bare])
    assert (bare.numpy() != 1).all()


@only_tensorflow
@pytest.mark.parametrize("outer", ["eager", "function", "xla"])
def test_every_mode_of_tensorflow_agrees(make, outer):
    import tensorflow as tf

    reference, ours = variable(), variable()
    optimizer, other = make(0.1), make(0.1)
    other.build([ours])

    def step(g):
        other.apply(g, [ours])

    if outer != "eager":
        step = tf.function(step, jit_compile=outer == "xla")
    for number in range(3):
        optimizer.apply([gradient(number)], [reference])
        step([gradient(number)])
    np.testing.assert_allclose(value(reference), value(ours), rtol=1e-5, atol=1e-6)


@only_tensorflow
def test_mirrored_strategy(make_exact):
    with two_replicas().scope():
        mirrored = model(make_exact(0.05))
    plain = model(make_exact(0.05))
    for fitted in (mirrored, plain):
        fitted.fit(*data(), batch_size=32, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(mirrored.variables, plain.variables):
        np.testing.assert_allclose(value(a), value(b), rtol=1e-3, atol=1e-4)


def test_only_the_backend_is_imported():
    """JAX and torch users need no TensorFlow."""
    code = "import sys, extreme_tensoring_tf; print('tensorflow' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == str(keras.backend.backend() == "tensorflow")


@only_jax
def test_jax_sharded_variables(make_exact):
    """Rows over two devices: the same result, still sharded."""
    import jax

    devices = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("rows",))
    rows = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("rows"))
    kernel, reference = variable((8, 6)), variable((8, 6))
    optimizer, plain = make_exact(0.1), make_exact(0.1)
    optimizer.build([kernel])
    values = [jax.device_put(kernel.value, rows)]
    slots = [v.value for v in optimizer.variables]
    update = jax.jit(optimizer.stateless_apply)
    for step in range(3):
        g = gradient(step, (8, 6))
        values, slots = update(slots, [jax.device_put(g, rows)], values)
        plain.apply([g], [reference])
    np.testing.assert_allclose(values[0], value(reference), rtol=1e-5, atol=1e-6)
    assert len(values[0].sharding.device_set) == 2


@only_jax
def test_jax_stateless_jit_with_donation(make_exact):
    import jax

    kernel, reference = variable(), variable()
    optimizer, plain = make_exact(0.1), make_exact(0.1)
    optimizer.build([kernel])
    update = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    values, slots = [kernel.value + 0], [v.value + 0 for v in optimizer.variables]
    for step in range(3):
        values, slots = update(slots, [gradient(step)], values)
        plain.apply([gradient(step)], [reference])
    np.testing.assert_allclose(values[0], value(reference), rtol=1e-5, atol=1e-6)
