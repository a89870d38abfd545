"""`fit` where users meet it: embeddings, a last batch that is smaller, two replicas.

The judge takes the same steps by hand, with dense gradients and nothing compiled.
"""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.testing.replicas import two_replicas

BACKEND = keras.backend.backend()
OPTIMIZERS = {
    "default": ExtremeTensoring,
    "not_compiled": lambda *a, **k: ExtremeTensoring(*a, jit_compile=False, **k),
    "momentum": lambda *a, **k: ExtremeTensoring(*a, beta_1=0.9, **k),
    "decay_and_clipping": lambda *a, **k: ExtremeTensoring(
        *a, weight_decay=0.1, global_clipnorm=0.5, **k
    ),
    "orthogonal": lambda *a, **k: ExtremeTensoring(
        *a, orthogonalize=".*", weight_decay=0.1, **k
    ),
    "orthogonal_momentum": lambda *a, **k: ExtremeTensoring(
        *a, orthogonalize=True, beta_1=0.9, clipnorm=0.5, **k
    ),
    "recommended": ExtremeTensoring.orthogonal,
}


def text_model(optimizer, length=None, **compile_kwargs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((length,), dtype="int32"),
            keras.layers.Embedding(60, 8),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=optimizer, loss="mse", **compile_kwargs)
    return model


def batches():
    """Four, four and two rows, of lengths that differ between batches."""
    rng = np.random.default_rng(0)
    for rows, length in ((4, 7), (4, 5), (2, 6)):
        ids = rng.integers(0, 60, (rows, length)).astype("int32")
        yield ids, rng.normal(size=(rows, 1)).astype("float32")


@functools.cache
def judge(name):
    """Returns the model after one step on each batch, with dense gradients."""
    import tensorflow as tf

    model = text_model(OPTIMIZERS[name](0.1))
    model.optimizer.jit_compile = False
    for x, y in batches():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x))
        grads = tape.gradient(loss, model.trainable_variables)
        grads = [tf.convert_to_tensor(g) for g in grads]
        model.optimizer.apply(grads, model.trainable_variables)
    return model


def tolerance_of(name):
    if name == "recommended":  # momentum is rounded by the last bits of the weights
        return 5e-3
    # Inverse roots of the Gram matrices of a few rows are large: so are their errors.
    return 2e-5 if "orthogonal" in name else 2e-6


def check_equal(model, expected, name):
    tolerance = tolerance_of(name)
    for a, b in zip(model.variables, expected.variables):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a),
            ops.convert_to_numpy(b),
            rtol=10 * tolerance,
            atol=tolerance,
        )


only_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the others know every shape when they compile"
)


@only_tensorflow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("jit_compile", ["auto", False])
def test_rows_and_lengths_that_are_unknown_when_traced(name, jit_compile):
    import tensorflow as tf

    model = text_model(OPTIMIZERS[name](0.1), jit_compile=jit_compile)
    specs = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, 1], tf.float32)
    stream = tf.data.Dataset.from_generator(batches, output_signature=specs)
    stream = stream.apply(tf.data.experimental.assert_cardinality(3))
    model.fit(stream, shuffle=False, verbose=0)
    check_equal(model, judge(name), name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_last_batch_that_is_smaller(name):
    """Ten rows in batches of four: learns, and counts three steps an epoch."""
    x = np.random.default_rng(0).integers(0, 60, (10, 7)).astype("int32")
    y = (x[:, :1] % 2).astype("float32")
    model = text_model(OPTIMIZERS[name](0.01), 7)
    losses = model.fit(x, y, batch_size=4, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert int(model.optimizer.iterations) == 18


@only_tensorflow
@pytest.mark.parametrize(
    "arguments",
    [{}, {"use_ema": True}, {"gradient_accumulation_steps": 2, "beta_1": 0.9}],
)
def test_fit_traces_a_model_once(arguments):
    """Slots that a trace makes would have TensorFlow trace the whole step again."""
    traces = []

    class Model(keras.Sequential):
        def train_step(self, data):
            traces.append(data)
            return super().train_step(data)

    model = Model([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile(ExtremeTensoring(0.1, **arguments), "mse")
    x, y = np.ones((8, 6), "float32"), np.ones((8, 1), "float32")
    losses = model.fit(x, y, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert len(traces) == 1 and losses[-1] < losses[0]


@only_tensorflow
def test_slots_may_be_made_in_a_plain_graph():
    import tensorflow as tf

    with tf.Graph().as_default():
        optimizer = ExtremeTensoring(0.1)
        optimizer.build([keras.Variable(np.ones((4, 6)), name="kernel")])
    assert optimizer.state_size == 2 + 2 + 2 + 3


@only_tensorflow
@pytest.mark.parametrize("name", ["default", "momentum", "orthogonal"])
def test_two_replicas_with_a_sparse_gradient(name):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, (16, 7))
    y = rng.normal(size=(16, 1)).astype("float32")
    with two_replicas().scope():
        mirrored = text_model(OPTIMIZERS[name](0.05), 7)
    plain = text_model(OPTIMIZERS[name](0.05), 7)
    for model in (mirrored, plain):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(mirrored.variables, plain.variables):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), rtol=1e-3, atol=1e-4
        )


@only_tensorflow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_sparse_gradient_without_rows_is_a_gradient_of_zero(name, compiled):
    import tensorflow as tf

    tables = [
        keras.Variable(np.ones((50, 8), "float32"), name="embeddings") for _ in range(2)
    ]
    optimizers = [OPTIMIZERS[name](0.1) for _ in tables]

    def gradient_of(table, ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table.value, ids))
        return tape.gradient(loss, table.value)

    optimizers[0].build([tables[0]])

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.int32)], jit_compile=compiled
    )
    def step(ids):
        optimizers[0].apply([gradient_of(tables[0], ids)], [tables[0]])

    for ids in ([1, 2, 2], [], [3]):
        ids = tf.constant(ids, tf.int32)
        step(ids)
        dense = tf.convert_to_tensor(gradient_of(tables[1], ids))
        optimizers[1].apply([dense], [tables[1]])
    for a, b in zip(
        [tables[0], *optimizers[0].variables], [tables[1], *optimizers[1].variables]
    ):
        # Of a gradient of low rank, rounding is what Newton-Schulz steps raise most.
        np.testing.assert_allclose(
            a.numpy(), b.numpy(), rtol=5 * tolerance_of(name), atol=1e-6
        )


def test_a_variable_without_entries_is_left_out():
    empty, full = (keras.Variable(np.ones(s), dtype="float32") for s in ((0, 5), (3,)))
    optimizer = ExtremeTensoring(0.1)
    optimizer.apply([ops.zeros((0, 5)), ops.ones(3)], [empty, full])
    assert (ops.convert_to_numpy(full) != 1).all()
    assert set(optimizer.skipped_updates.values()) == {0}


@pytest.mark.parametrize("shape", [(6, 4), (24,), (4, 1), (2, 12), ()])
def test_a_gradient_of_another_shape_is_refused(shape):
    variable = keras.Variable(np.zeros((4, 6)), dtype="float32", name="kernel")
    optimizer = ExtremeTensoring(0.1, gradient_accumulation_steps=2)
    optimizer.build([variable])
    with pytest.raises(ValueError, match=r"'kernel' has shape \(.*variable \(4, 6\)"):
        optimizer.apply([ops.ones(shape)], [variable])
    assert (ops.convert_to_numpy(variable) == 0).all()


@only_tensorflow
@pytest.mark.parametrize("known", [[None, None], None], ids=["rank", "nothing"])
@pytest.mark.parametrize("rows", [None, [1, 3]], ids=["dense", "sparse"])
def test_a_gradient_whose_shape_shows_late(known, rows):
    """As that of a `tf.py_function`: used where it fits, refused where it does not."""
    import tensorflow as tf

    variable = keras.Variable(np.zeros((4, 6)), dtype="float32")
    optimizer = ExtremeTensoring(0.1)
    optimizer.build([variable])

    @tf.function(input_signature=[tf.TensorSpec(known)])
    def step(gradient):
        if rows:
            gradient = tf.IndexedSlices(gradient, rows, (4, 6))
        optimizer.apply([gradient], [variable])

    count = len(rows or range(4))
    step(tf.ones((count, 6)))
    before = variable.numpy()
    moved = np.flatnonzero((before < 0).all(axis=1)).tolist()
    assert moved == (rows or [0, 1, 2, 3])
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible"):
        step(tf.ones((count, 12)))
    np.testing.assert_array_equal(variable.numpy(), before)


@only_tensorflow
def test_a_sparse_gradient_of_another_shape_is_refused():
    import tensorflow as tf

    variable = keras.Variable(np.zeros((4, 6)), dtype="float32")
    optimizer = ExtremeTensoring(0.1)
    sparse = tf.IndexedSlices(tf.ones((2, 5)), [0, 1])
    with pytest.raises(ValueError, match=r"shape \(4, 5\), the variable \(4, 6\)"):
        optimizer.apply([sparse], [variable])


@pytest.mark.parametrize("dtype", ["complex64", "int32"])
def test_variables_of_other_numbers_are_refused(dtype):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        variable = tf.Variable(tf.ones((3,), dtype), name="phase")
    else:
        trainable = dtype != "int32"  # torch lets no integers be
        variable = keras.Variable(
            np.ones(3), dtype=dtype, trainable=trainable, name="phase"
        )
    with pytest.raises(ValueError, match=f"'phase.*' has dtype {dtype}"):
        ExtremeTensoring(0.1).build([variable])


def twins():
    """The variables of two models with the same names."""

    def net():
        return keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(8, name="hidden"),
                keras.layers.Dense(1, name="out"),
            ],
            name="net",
        )

    return net().trainable_variables + net().trainable_variables


def test_equal_paths_are_told_apart_by_position():
    variables = twins()
    ruled = ExtremeTensoring(0.1, tensor_dims={"kernel": 1}, jit_compile=False)
    ruled.build(variables)
    kernels = [dims.dims for dims in ruled._slots.indices[::2]]
    assert kernels == [(6, 8), (8,), (6, 8), (8,)]
    budgeted = ExtremeTensoring.for_budget(variables, 200, learning_rate=0.1)
    budgeted.build(variables)
    assert 4 * budgeted.state_size <= 200
    restored = ExtremeTensoring.from_config(budgeted.get_config())
    restored.build(variables)
    assert restored.state_size == budgeted.state_size
    gradients = [ops.ones(v.shape) for v in variables]
    gradients[4] = gradients[4] * np.nan
    ruled.apply(gradients, variables)
    skipped = ruled.skipped_updates
    assert len(skipped) == 8
    assert [path for path, count in skipped.items() if count] == ["net/hidden/kernel#2"]
    with pytest.raises(ValueError, match="list of 2 entries for 8 variables"):
        ExtremeTensoring(0.1, tensor_dims=[1, 2]).build(variables)


@only_tensorflow
def test_variables_without_names():
    import tensorflow as tf

    variables = [tf.Variable(tf.ones(s)) for s in ((4, 6), (6,))]
    optimizer = ExtremeTensoring.for_budget(variables, 40)
    optimizer.build(variables)
    assert 4 * optimizer.state_size <= 40
    optimizer.apply([tf.fill((4, 6), np.nan), tf.ones(6)], variables)
    assert list(optimizer.skipped_updates.values()) == [1, 0]


def test_a_rule_for_layers_that_are_frozen_is_no_error():
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, name="base"), keras.layers.Dense(1)]
    )
    model.get_layer("base").trainable = False
    optimizer = ExtremeTensoring(0.1, tensor_dims={"base": 1})
    with pytest.warns(UserWarning, match="'base' .* matches no trainable variable"):
        optimizer.build(model.trainable_variables)


def test_levels_are_integers_of_any_kind():
    assert ExtremeTensoring(0.1, level=np.int64(2)).level == 2
    with pytest.raises(ValueError, match="`level` must be"):
        ExtremeTensoring(0.1, level=True)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own tool")
@pytest.mark.parametrize("name", ["not_compiled", "decay_and_clipping", "recommended"])
def test_a_search_for_numbers_that_are_not_finite_finds_none(name):
    """It looks at constants, too, whether they are taken or not."""
    import tensorflow as tf

    tf.debugging.enable_check_numerics()
    try:
        model = text_model(OPTIMIZERS[name](0.1), jit_compile=False)
        for x, y in batches():
            model.train_on_batch(x, y)
    finally:
        tf.debugging.disable_check_numerics()
