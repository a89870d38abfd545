"""How much of the machine's arithmetic training uses."""

import time

import keras
import numpy as np
from keras import ops


def per_token(model, hparams, length):
    """Floating-point operations of a training step, by token.

    flops = 6 N + 12 L T D

    where
        N: entries of the weights that multiply (matrices, the embedding once);
        L: layers; T: tokens of a row; D: hidden size.

    Forward is a third of it. Rematerialization is not counted, nor is what masks
    leave out. Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    weights = sum(
        int(np.prod(v.shape)) for v in model.trainable_variables if len(v.shape) > 1
    )
    attention = hparams.num_hidden_layers * length * hparams.hidden_size
    return 6 * weights + 12 * attention


def of_matrix_product(dtype="float32", size=2048, rounds=8):
    """Operations a second of a large matrix product here, the fastest of `rounds`.

    It stands for what the device can do, on every device and for every dtype.
    """
    x = ops.cast(ops.ones((size, size)), dtype)
    best = np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        np.asarray(ops.convert_to_numpy(ops.matmul(x, x)[0, 0]))  # waits for it
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def report(per_second, dtype):
    """One line: operations a second, and their share of a matrix product's.

    Args:
        per_second: speed of training, by the count of `per_token`.
        dtype: policy of the run; a product in its compute dtype is measured now.
    """
    possible = of_matrix_product(keras.dtype_policies.get(dtype).compute_dtype)
    return (
        f"{per_second / 1e9:,.0f} GFLOP/s, model FLOP utilisation "
        f"{per_second / possible:.0%} of the {possible / 1e9:,.0f} of a large matrix "
        "product here"
    )
