"""One table: levels x dtypes x ways to run a step, judged by Algorithm 1 in float64.

Every cell steps variables of all shapes. Run under each KERAS_BACKEND.
"""

import itertools

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.matrix_view import matrix_view
from extreme_tensoring_tf.testing.naive_reference import NaiveExtremeTensoring
from extreme_tensoring_tf.testing.naive_reference import NaiveOrthogonal
from extreme_tensoring_tf.testing.replicas import two_replicas

BACKEND = keras.backend.backend()
# A scalar, primes and padded axes, unit axes, two variables alike, one that is
# summed in blocks of rows (64 KB each) with rows left over.
SHAPES = [(), (19,), (1, 12), (36, 47), (36, 47), (3, 3, 4, 19), (65, 520)]
# float16 ends at 65504, so a square leaves it where float32 has room.
DTYPES = {
    "float64": (np.float64, 1e-6 if BACKEND == "torch" else 1e-9),
    "float32": (np.float32, 1e-5),
    "bfloat16": (ml_dtypes.bfloat16, 2**-8),
    "float16": (np.float16, 2**-11),
}
FORMS = {
    "paper": {},
    "rank_one": {"preconditioner": "rank_one", "beta_2": 0.9, "clip_threshold": 1.0},
    "orthogonal": {"orthogonalize": [".*"], "ns_steps": 6, "damping": 0.3},
}
MODES = {
    "tensorflow": [
        "eager",
        "function",
        "unknown",
        "xla",
        "xla_unknown",
        "fit",
        "fit_xla",
        "replicas",
    ],
    "jax": ["eager", "xla", "fit_xla"],
    "torch": ["eager", "fit"],
}[BACKEND]
STEPS = 3


def cells():
    """Every mode at level 2 in float32, every level and dtype in one mode.

    Dtypes under XLA, too, in one form. The whole product is left to test-all.
    """
    main_mode = "function" if "function" in MODES else MODES[0]
    for level, dtype, mode, form in itertools.product(
        [1, 2, 3, "inf"], DTYPES, MODES, FORMS
    ):
        usual = (level == 2) + (dtype == "float32") + (mode == main_mode)
        compiled = (level, mode, form) == (2, "xla", "rank_one")
        marks = [] if usual >= 2 or compiled else [pytest.mark.slow]
        yield pytest.param(level, dtype, mode, form, marks=marks)


@pytest.mark.parametrize("level, dtype, mode, form", list(cells()))
def test_every_way_to_step(level, dtype, mode, form):
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX has no float64 by default")
    numpy_dtype, tolerance = DTYPES[dtype]
    rng = np.random.default_rng(0)
    values = [rng.normal(size=s).astype(numpy_dtype) for s in SHAPES]
    batches = [
        # `fit` feeds float32, whatever the model's dtype.
        [(rng.normal(size=s) * 300).astype("f4").astype(numpy_dtype) for s in SHAPES]
        for _ in range(STEPS)
    ]
    rate = 0.125  # exact in every dtype
    judges = [judge(v.astype("float64"), level, rate, form) for v in values]
    for batch in batches:
        for each, g in zip(judges, batch):
            each.step(g.astype("float64"))
            each.x = each.x.astype(numpy_dtype).astype("float64")

    optimizer = ExtremeTensoring.algorithm_1(
        rate, level=level, jit_compile="xla" in mode, **FORMS[form]
    )
    variables = [keras.Variable(v, dtype=dtype) for v in values]
    RUN[mode](optimizer, variables, batches)
    assert int(optimizer.iterations) == STEPS
    for each, variable in zip(judges, variables):
        np.testing.assert_allclose(
            np.asarray(ops.convert_to_numpy(variable), "float64"),
            each.x,
            # A value between two of a short dtype may round to either, each step.
            rtol=tolerance * (1 if dtype in ("float32", "float64") else STEPS),
            atol=tolerance,
            err_msg=f"{variable.shape}",
        )


def judge(value, level, rate, form):
    """Returns the judge of one variable."""
    if form != "orthogonal":
        return NaiveExtremeTensoring(value, level, rate, **FORMS[form])
    if value.ndim < 2:
        return NaiveExtremeTensoring(value, level, rate)
    view = matrix_view(value.shape).view
    return NaiveOrthogonal(value, view, rate, FORMS[form]["damping"])


def eager(optimizer, variables, batches):
    for batch in batches:
        optimizer.apply(tensors(batch, variables), variables)


def apply_in_a_function(optimizer, variables, batches, known, jit_compile):
    """Steps in a `tf.function`, which knows the shapes of gradients or does not."""
    import tensorflow as tf

    optimizer.build(variables)
    signature = [
        tf.TensorSpec(v.shape if known else [None] * len(v.shape), v.dtype)
        for v in variables
    ]
    step = tf.function(
        lambda *grads: optimizer.apply(grads, variables),
        input_signature=signature,
        jit_compile=jit_compile,
    )
    for batch in batches:
        step(*tensors(batch, variables))


def function(*arguments):
    apply_in_a_function(*arguments, known=True, jit_compile=False)


def unknown(*arguments):
    apply_in_a_function(*arguments, known=False, jit_compile=False)


def xla_unknown(*arguments):
    apply_in_a_function(*arguments, known=False, jit_compile=True)


def xla(optimizer, variables, batches):
    if BACKEND == "tensorflow":
        apply_in_a_function(optimizer, variables, batches, known=True, jit_compile=True)
        return
    import jax

    optimizer.build(variables)
    step = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    state = [v.value for v in optimizer.variables]
    values = [v.value for v in variables]
    for batch in batches:
        values, state = step(state, tensors(batch, variables), values)
    for variable, value in zip(variables + optimizer.variables, values + state):
        variable.assign(value)


def replicas(optimizer, variables, batches):
    """Two replicas, each with half of the gradient; copies take the place of ours."""
    import tensorflow as tf

    strategy = two_replicas()
    with strategy.scope():
        values = map(ops.convert_to_numpy, variables)
        mirrored = [keras.Variable(v, dtype=o.dtype) for v, o in zip(values, variables)]
        ours = ExtremeTensoring.from_config(optimizer.get_config())
        ours.build(mirrored)

    @tf.function
    def step(grads):
        strategy.run(lambda: ours.apply([g / 2 for g in grads], mirrored))

    for batch in batches:
        step(tensors(batch, variables))
    optimizer.iterations.assign(ours.iterations)
    for variable, copy in zip(variables, mirrored):
        variable.assign(copy)


class Linear(keras.Model):
    """sum_i <x_i, g_i>, for which the gradient of x_i is the input g_i."""

    def __init__(self, parameters):
        wide = "float64" if parameters[0].dtype == "float64" else "float32"
        super().__init__(dtype=wide)
        self.parameters_ = parameters
        self._trainable_variables.extend(parameters)
        self.built = True

    def call(self, inputs):
        total = 0.0
        for x, g in zip(self.parameters_, inputs):
            x = ops.cast(x, self.compute_dtype)
            total = total + ops.sum(x * ops.cast(g[0], self.compute_dtype))
        return ops.reshape(total, (1, 1))


def fit(optimizer, variables, batches, jit_compile=False):
    model = Linear(variables)
    model.compile(
        optimizer=optimizer,
        loss=lambda y, total: ops.sum(total),
        jit_compile=jit_compile,
    )
    inputs = tuple(np.stack(gs).astype("float32") for gs in zip(*batches))
    targets = np.zeros((STEPS, 1))
    model.fit(inputs, targets, batch_size=1, shuffle=False, verbose=0)


def fit_xla(optimizer, variables, batches):
    fit(optimizer, variables, batches, jit_compile=True)


def tensors(batch, variables):
    return [
        ops.convert_to_tensor(g.astype("float32"), dtype=v.dtype)
        for g, v in zip(batch, variables)
    ]


RUN = {
    "eager": eager,
    "function": function,
    "unknown": unknown,
    "xla": xla,
    "xla_unknown": xla_unknown,
    "fit": fit,
    "fit_xla": fit_xla,
    "replicas": replicas,
}
