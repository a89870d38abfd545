"""Counts the arithmetic of training, and compares it with the machine's speed."""

import time

import keras
import numpy as np
from keras import ops

from trainer import distribution
from trainer.hparams import HParams


def per_token(model: keras.Model, hparams: HParams, length: float) -> float:
    """Returns the floating-point operations of a training step, by token.

    flops = 6 N + 12 L T D

    where
        N: entries of the weights that multiply (matrices, the embedding once);
        L: layers; T: tokens of a row; D: hidden size.

    Forward is a third of them. Neither rematerialization counts nor the share of
    attention that masks leave out. Source: Chowdhery et al. 2022, "PaLM", appendix B.

    Args:
        model: language model.
        hparams: of the model; L and D are among them.
        length: T, the mean where rows differ.
    """
    weights = sum(
        int(np.prod(v.shape)) for v in model.trainable_variables if len(v.shape) > 1
    )
    return of_weights(weights, hparams, length)


def of_weights(weights: int, hparams: HParams, length: float) -> float:
    """Returns `per_token` of a model that has so many weights, N."""
    attention = hparams.num_hidden_layers * length * hparams.hidden_size
    return 6 * weights + 12 * attention


def of_matrix_product(dtype: str = "float32", seconds: float = 0.5) -> float:
    """Returns the operations a second of a large matrix product on this device.

    The product stands for the most that the device can do with numbers of a dtype. Its
    matrices have 2,048 rows. Where that takes less than 10 milliseconds they have
    8,192, and several products are started at once: what the host needs to start one,
    a millisecond beside a GPU, is no part of the figure.

    Args:
        dtype: of the matrices.
        seconds: that products of a size are computed, three times at least; the fastest
            counts.
    """
    for size, products in ((2048, 1), (8192, 4)):
        # A seed of its own: the global one is a variable that processes share.
        x = ops.cast(keras.random.normal((size, size), seed=0), dtype)
        best, rounds, began = np.inf, 0, time.perf_counter()
        while rounds < 3 or time.perf_counter() - began < seconds:
            rounds += 1
            start = time.perf_counter()
            for _ in range(products):
                y = ops.matmul(x, x)
            np.asarray(ops.convert_to_numpy(y[0, 0]))  # waits for all
            best = min(best, time.perf_counter() - start)
        if best > 1e-2:
            break
    return 2 * size**3 * products / best


def report(per_second: float, dtype: str) -> str:
    """Returns a line of operations a second, and their share of a matrix product's.

    The product is that of one device, times the devices of the run.

    Args:
        per_second: speed of training, by the count of `per_token`.
        dtype: policy of the run; a product in its compute dtype is measured now.
    """
    possible = of_matrix_product(keras.dtype_policies.get(dtype).compute_dtype)
    possible *= distribution.devices()
    return (
        f"{per_second / 1e9:,.0f} GFLOP/s, model FLOP utilisation "
        f"{per_second / possible:.0%} of the {possible / 1e9:,.0f} of a large matrix "
        "product here"
    )
