"""Polar factors by iteration, against `numpy.linalg.svd` in float64."""

import ml_dtypes
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import newton_schulz
from extreme_tensoring_tf.newton_schulz import Orthogonalizer
from extreme_tensoring_tf.newton_schulz import coefficients
from extreme_tensoring_tf.newton_schulz import polar_factors
from extreme_tensoring_tf.testing.naive_reference import damped_polar_factor

# (damping, steps): the largest error of a factor, as a share of its norm, on a matrix
# whose columns' scales span three orders of magnitude.
ERRORS = {
    (0.0, 5): 0.4,
    (0.0, 8): 0.18,
    (0.0, 14): 0.05,
    (0.01, 3): 0.25,
    (0.01, 4): 0.02,
    (0.1, 2): 0.3,
    (0.1, 3): 0.04,
    (0.1, 4): 2e-4,
    (1.0, 3): 2e-3,
    (1.0, 5): 1e-5,
}


def gradient(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * np.geomspace(1, 1e-3, shape[-1])


def factors(matrices, *args):
    tensor = ops.convert_to_tensor(matrices)
    return np.asarray(ops.convert_to_numpy(polar_factors(tensor, *args)), "float64")


@pytest.mark.parametrize("shape", [(48, 48), (48, 200), (200, 48)])
@pytest.mark.parametrize("damping, steps", ERRORS)
def test_is_near_the_factor_by_svd(damping, steps, shape):
    matrix = gradient(shape)
    expected = damped_polar_factor(matrix, damping)
    found = factors(matrix.astype("float32"), steps, damping)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < ERRORS[damping, steps]


@pytest.mark.parametrize(
    "steps, lowest, highest",
    [
        (2, 0.03, 1.97),
        (3, 0.12, 1.87),
        (4, 0.42, 1.58),
        (5, 0.85, 1.15),
        (6, 0.99, 1.01),
    ],
)
def test_singular_values_after_some_steps(steps, lowest, highest):
    """Of all singular values from 0.001 to 1, where the first is fitted to start."""
    values = np.geomspace(1e-3, 1, 200)
    for a, b, c in coefficients(steps):
        values = a * values + b * values**3 + c * values**5
    assert lowest < values.min() and values.max() < highest


def test_coefficients_are_those_that_were_published():
    """Of arXiv 2505.16932, Appendix: before the safety factor, from 0.001."""
    published = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    ]
    found = [(a * 1.01, b * 1.01**3, c * 1.01**5) for a, b, c in coefficients(6)]
    np.testing.assert_allclose(found[:5], published, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e30])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_the_scale_of_a_gradient_does_not_matter(scale, damping):
    matrix = gradient((12, 30)).astype("float32")
    found = factors(matrix * np.float32(scale), 5, damping)
    np.testing.assert_allclose(found, factors(matrix, 5, damping), atol=1e-4)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_edges(damping):
    assert (factors(np.zeros((3, 7), "float32"), 3, damping) == 0).all()
    row = gradient((1, 30)).astype("float32")
    direction = Orthogonalizer(3, damping, 1.0).direction(
        ops.convert_to_tensor(row[None])
    )
    direction = ops.convert_to_numpy(direction)[0]
    np.testing.assert_allclose(
        direction, row / np.sqrt(np.mean(row**2)), rtol=1e-5, err_msg="1 x n"
    )
    # What the gradient does not reach does not move.
    deficient = np.zeros((8, 20), "float32")
    deficient[:2] = gradient((2, 20))
    found = factors(deficient, 5, damping)
    assert np.isfinite(found).all()
    assert (found[2:] == 0).all() and (found[:2] != 0).all()
    stacked = np.stack([deficient, np.zeros_like(deficient)])
    np.testing.assert_allclose(factors(stacked, 5, damping)[0], found, atol=1e-6)
    bad = deficient.copy()
    bad[1, 3] = np.nan
    assert not np.isfinite(factors(bad, 3, damping)).any()


def test_bfloat16_holds_with_damping():
    matrix = gradient((64, 200))
    expected = damped_polar_factor(matrix, 0.1)
    short = factors(matrix.astype(ml_dtypes.bfloat16), 3, 0.1)
    assert np.linalg.norm(short - expected) / np.linalg.norm(expected) < 0.1


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(48, 48), (48, 200), (200, 48)])
def test_half_precision_holds_with_damping(shape, scale):
    """Beside the 2 % of four steps it adds little, whatever the scale."""
    matrix = gradient(shape)
    expected = damped_polar_factor(matrix, 0.01)
    matrix = (matrix * scale).astype("float32")
    half = factors(matrix, 4, 0.01, "float16")
    assert np.linalg.norm(half - expected) / np.linalg.norm(expected) < 0.03
    assert (factors(np.zeros(shape, "float32"), 4, 0.01, "float16") == 0).all()


def test_rounding_every_product_does_not_add_up(monkeypatch):
    """As a GPU rounds: XLA for CPUs keeps float32 between products of float16."""

    def matmul(a, b):
        return (np.asarray(a) @ np.asarray(b)).astype("float16").astype("float32")

    matrix = gradient((48, 48)).astype("float32")
    expected = damped_polar_factor(matrix, 0.01)
    matrix /= np.sqrt(1.01 * np.sum(matrix**2))
    shift = 0.01 / 1.01 / 48
    identity = np.eye(48, dtype="float32")
    monkeypatch.setattr(newton_schulz.ops, "matmul", matmul)
    root = newton_schulz.inverse_root(
        matmul(matrix, matrix.T) + shift * identity,
        identity,
        coefficients(4, shift**0.5),
    )
    error = np.linalg.norm(root @ matrix - expected) / np.linalg.norm(expected)
    assert error < 0.016


def test_direction_has_the_asked_root_mean_square():
    matrices = np.stack([gradient((9, 25), seed) for seed in range(3)])
    direction = Orthogonalizer(3, 0.1, 0.5).direction(
        ops.convert_to_tensor(matrices.astype("float32"))
    )
    rms = np.sqrt(np.mean(ops.convert_to_numpy(direction) ** 2, axis=(1, 2)))
    np.testing.assert_allclose(rms, 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    "shape, block_size, block",
    [
        ((12, 36), 6, (slice(None), slice(6, 12))),
        ((12, 37), 8, (slice(None), slice(24, 32))),
        ((12, 37), 8, (slice(None), slice(32, 37))),  # what is left
        ((37, 12), 24, (slice(24, 37), slice(None))),
        ((12, 12), 4, (slice(None), slice(4, 8))),
        ((36, 12), 9, (slice(9, 18), slice(None))),
        ((36, 12), 100, (slice(None), slice(None))),
    ],
)
def test_a_block_has_a_factor_of_its_own(shape, block_size, block):
    matrices = ops.convert_to_tensor(
        np.stack([gradient(shape, seed) for seed in range(2)]).astype("float32")
    )
    whole = Orthogonalizer(3, 0.1, 1.0)
    blocked = Orthogonalizer(3, 0.1, 1.0, block_size)
    (rows, cols) = block
    np.testing.assert_allclose(
        ops.convert_to_numpy(blocked.direction(matrices))[:, rows, cols],
        ops.convert_to_numpy(whole.direction(matrices[:, rows, cols])),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 0.1, 1.0), "ns_steps=0"),
        ((2.5, 0.1, 1.0), "ns_steps=2.5"),
        ((3, -0.1, 1.0), "damping=-0.1"),
        ((3, float("nan"), 1.0), "damping=nan"),
        ((3, 0.1, 0.0), "rms_rate=0.0"),
        ((3, 0.1, 1.0, 0), "block_size=0"),
        ((3, 0.1, 1.0, None, "bfloat16"), "ns_dtype='bfloat16'"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Orthogonalizer(*arguments)
