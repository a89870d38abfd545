"""Clipping, weight decay and skipping that ride on the sums, against Keras' passes."""

import collections
import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import update
from extreme_tensoring_tf.matrix_view import matrix_view
from extreme_tensoring_tf.tensor_index import index_from_level
from extreme_tensoring_tf.update import Member
from extreme_tensoring_tf.update import alike

# Two variables that are stacked, and two that are updated together and are not.
SHAPES = [(6, 8), (6, 8), (8,), (), (65, 300), (65, 300)]
CLIPPINGS = [{"clipnorm": 1.0}, {"global_clipnorm": 2.0}, {"clipvalue": 0.3}, {}]
FORMS = [{}, {"beta_1": 0.9}, {"preconditioner": "rank_one", "clip_threshold": 1.0}]


class KerasPasses(ExtremeTensoring):
    """Clips and decays as `keras.optimizers.Optimizer` does, before the update."""

    def apply(self, grads, variables):
        grads = keras.optimizers.Optimizer._clip_gradients(self, grads)
        for v in variables:
            if self.weight_decay and self._use_weight_decay(v):
                rate = ops.cast(self.learning_rate, v.dtype)
                v.assign(v - ops.convert_to_tensor(v) * self.weight_decay * rate)
        norms = self.clipnorm, self.global_clipnorm, self.clipvalue, self.weight_decay
        self.clipnorm = self.global_clipnorm = self.clipvalue = None
        self.weight_decay = None
        super().apply(grads, variables)
        self.clipnorm, self.global_clipnorm, self.clipvalue, self.weight_decay = norms


def run(cls, batches, **kwargs):
    variables = [keras.Variable(np.ones(s, "float32")) for s in SHAPES]
    optimizer = cls.algorithm_1(0.1, weight_decay=0.1, **kwargs)
    optimizer.exclude_from_weight_decay(var_list=[variables[2]])
    optimizer.build(variables)
    for batch in batches:
        optimizer.apply([ops.convert_to_tensor(g) for g in batch], variables)
    return optimizer, [ops.convert_to_numpy(v) for v in variables]


def gradients(steps=3):
    rng = np.random.default_rng(0)
    return [
        # Cast last: NumPy 1 takes a scalar in float32 times an integer as float64.
        [(rng.normal(size=s) * 2**i).astype("float32") for i, s in enumerate(SHAPES)]
        for _ in range(steps)
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_equals_keras_own_passes(clipping, form):
    compiled = {"jit_compile": form == FORMS[2]}
    _, expected = run(KerasPasses, gradients(), **clipping, **form, jit_compile=False)
    _, values = run(ExtremeTensoring, gradients(), **clipping, **form, **compiled)
    for value, target in zip(values, expected):
        np.testing.assert_allclose(value, target, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("clipping", [{}, {"global_clipnorm": 2.0}])
def test_the_global_norm_is_reported(clipping, jit_compile):
    (batch,) = gradients(steps=1)
    variables = [keras.Variable(np.ones(s, "float32")) for s in SHAPES]
    norm = keras.Variable(0.0)
    optimizer = ExtremeTensoring(0.1, jit_compile=jit_compile, **clipping)
    optimizer.report_gradient_norm(norm)
    optimizer.apply([ops.convert_to_tensor(g) for g in batch], variables)
    expected = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in batch))
    np.testing.assert_allclose(ops.convert_to_numpy(norm), expected, rtol=1e-6)
    assert not any(v is norm for v in optimizer.variables)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_skipped_variable_does_not_decay(bad):
    (batch,) = gradients(steps=1)
    batch[0][2, 3] = bad
    optimizer, values = run(ExtremeTensoring, [batch])
    np.testing.assert_array_equal(values[0], np.ones(SHAPES[0]))
    assert all((v != 1).any() for v in values[1:])
    assert list(optimizer.skipped_updates.values()) == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_global_norm_that_is_not_finite_skips_all(bad):
    (batch,) = gradients(steps=1)
    batch[0][2, 3] = bad
    optimizer, values = run(ExtremeTensoring, [batch], global_clipnorm=1.0)
    for value in values:
        np.testing.assert_array_equal(value, np.ones_like(value))
    assert set(optimizer.skipped_updates.values()) == {1}


def test_zero_gradients_survive_clipping():
    zeros = [[np.zeros(s, "float32") for s in SHAPES]]
    optimizer, values = run(ExtremeTensoring, zeros, global_clipnorm=1.0)
    np.testing.assert_allclose(values[0], 0.99, rtol=1e-6)  # decayed only
    assert set(optimizer.skipped_updates.values()) == {0}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow")
def test_a_program_for_each_shape_serves_all_rates_and_steps():
    variables = [keras.Variable(np.ones(s, "float32")) for s in SHAPES]
    optimizer = ExtremeTensoring(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9), global_clipnorm=1.0
    )
    for batch in gradients(steps=4):
        optimizer.apply([ops.convert_to_tensor(g) for g in batch], variables)
    # The sums and the step of four different shapes.
    assert len(optimizer._programs) == 8
    optimizer = ExtremeTensoring(0.1)
    for step, batch in enumerate(gradients(steps=4)):
        optimizer.learning_rate = 0.1 * (step + 1)
        optimizer.apply([ops.convert_to_tensor(g) for g in batch], variables)
    assert len(optimizer._programs) == 4


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow")
def test_optimizers_of_equal_settings_share_programs(monkeypatch):
    """Those alive do, and one that is made after the last was dropped."""
    from extreme_tensoring_tf import xla

    traced, make = [], xla._program
    monkeypatch.setattr(xla, "_programs", weakref.WeakValueDictionary())
    monkeypatch.setattr(xla, "_recent", collections.deque(maxlen=4))
    monkeypatch.setattr(xla, "_program", lambda *a: traced.append(a) or make(*a))

    def stepped(**arguments):
        return run(ExtremeTensoring, gradients(steps=1), **arguments)

    (first, expected), (second, values) = stepped(), stepped()
    for a, b in zip(values, expected):
        np.testing.assert_array_equal(a, b)
    assert len(traced) == len(first._programs) == 4  # one a shape
    assert [*first._programs.values()] == [*second._programs.values()]
    del first, second
    gc.collect()
    stepped()
    assert len(traced) == 4
    for dtype in (None, "bfloat16"):
        stepped(beta_1=0.9, momentum_dtype=dtype)
    gc.collect()
    assert len(traced) == 12
    assert set(xla._programs.values()) == set(xla._recent)  # the others are dropped
    assert len(xla._recent) == 4


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow")
def test_programs_are_for_what_is_worth_compiling(monkeypatch):
    """Sixteen matrices of 2**16 entries share programs; no small variable has one."""
    from extreme_tensoring_tf import xla

    monkeypatch.setattr(xla, "WORTH_COMPILING", 2**20)
    shapes = [(256, 256)] * 16 + [(256,)] * 20 + [(96, 96)] * 5
    variables = [keras.Variable(np.ones(s, "float32")) for s in shapes]
    optimizer = ExtremeTensoring(0.1)
    optimizer.apply([ops.ones(s) for s in shapes], variables)
    assert len(optimizer._programs) == 1
    for variable in variables:
        np.testing.assert_allclose(ops.convert_to_numpy(variable), 0.9, rtol=1e-5)


def members(count, shape):
    return [
        Member(i, keras.Variable(np.ones(shape, "float32")), ops.ones(shape), 0, 0)
        for i in range(count)
    ]


@pytest.mark.parametrize(
    "count, shape, sizes",
    [
        (40, (64,), [40]),  # small: all at once
        (6, (512, 512), [3, 3]),  # four would be 2**20 entries: as even as can be
        (3, (1024, 1024), [1, 1, 1]),  # large: each by itself
        (9, (128, 128), [5, 4]),  # not stacked: eight at most
    ],
)
def test_how_many_are_updated_together(count, shape, sizes):
    (kind,) = alike(members(count, shape), [index_from_level(shape, 2)] * count)
    assert [len(group) for group in kind] == sizes
    (whole,) = alike(
        members(count, shape), [index_from_level(shape, 2)] * count, entries=2**30
    )
    assert len(whole) == -(-count // (8 if np.prod(shape) >= 2**14 else count))


@pytest.mark.parametrize("on_gpu, sizes", [(False, [1] * 6), (True, [6])])
def test_how_many_are_orthogonalized_together(monkeypatch, on_gpu, sizes):
    monkeypatch.setattr(update, "has_accelerator", lambda: on_gpu)
    shape = (256, 1024)
    (kind,) = alike(members(6, shape), [matrix_view(shape)] * 6)
    assert [len(group) for group in kind] == sizes


def test_more_are_updated_together_on_a_gpu(monkeypatch):
    monkeypatch.setattr(update, "has_accelerator", lambda: True)
    shape = (512, 512)
    (kind,) = alike(members(40, shape), [index_from_level(shape, 2)] * 40)
    assert [len(group) for group in kind] == [20, 20]


@pytest.mark.parametrize("shape", [(12, 20), (130, 130), (9,)])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"clipnorm": 0.3},
        {"preconditioner": "rank_one"},
        {"beta_1": 0.5},
        {"beta_1": 0.5, "momentum_dtype": "packed"},
        {"orthogonalize": [".*"], "momentum": 0.5},
        {"orthogonalize": [".*"], "momentum": 0.5, "momentum_dtype": "packed"},
    ],
)
def test_variables_updated_together_are_updated_as_if_alone(monkeypatch, shape, form):
    if "orthogonalize" in form and len(shape) < 2:
        pytest.skip("a vector has no polar factor")
    monkeypatch.setattr(update, "has_accelerator", lambda: True)  # the largest groups
    rng = np.random.default_rng(0)
    values = [np.full(shape, i + 1, "float32") for i in range(3)]
    together = [keras.Variable(v) for v in values]
    alone = [keras.Variable(v) for v in values]
    optimizer, *others = (
        ExtremeTensoring.algorithm_1(0.1, jit_compile=False, **form) for _ in range(4)
    )
    for _ in range(3):
        grads = [rng.normal(size=shape) * 10.0 ** (i - 1) for i in range(3)]
        grads = [ops.convert_to_tensor(g.astype("float32")) for g in grads]
        optimizer.apply(grads, together)
        for other, gradient, variable in zip(others, grads, alone):
            other.apply([gradient], [variable])
    # What is packed is rounded by bits, of which the last may differ.
    rtol, atol = (1e-5, 1e-6) if "momentum_dtype" not in form else (0.01, 0.01)
    for a, b in zip(together, alone):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), rtol=rtol, atol=atol
        )
