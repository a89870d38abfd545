"""How far a tensor index is from AdaGrad: the constant of the regret bound."""

import re

import keras
import numpy as np
from keras import ops

from extreme_tensoring_tf.memory import inner
from extreme_tensoring_tf.preconditioner import inverse_trace


class TraceRatio(keras.callbacks.Callback):
    """Logs sqrt(Tr(H_ET) / Tr(H_AdaGrad)) at the end of every epoch.

    Tr(H_ET)      = sum over I of prod_i (epsilon + S_i[I_i]) ** (1 / (2 p))
    Tr(H_AdaGrad) = sum over I of (epsilon + sum over steps of g[I]**2) ** (1/2)

    where

        S_i: ExtremeTensoring's sums of squares over slices,
        I: an entry of a variable, I_i its coordinates; p: the number of dims.

    The regret of extreme tensoring is at most this ratio times AdaGrad's bound;
    it is at least 1. While the callback is active, AdaGrad's sums are kept beside
    the statistics: one more array of its size for each variable watched. They
    start at the first step of this `fit`, so begin with a fresh optimizer. A model
    that is saved meanwhile has them in its file, and loads without its optimizer's
    state.

    Logs `trace_ratio` for all variables watched together, and
    `trace_ratio/PATH` for each.

    Args:
        variables: regular expression, searched in variable paths. Defaults to
            all trainable variables.

    Raises:
        ValueError: the model was not compiled with an `ExtremeTensoring` that
            sums squares (Algorithm 1: `beta_2=None`, "geometric_mean", "sum", with
            epsilon added per axis), or the optimizer took steps before, or nothing
            matches.

    Source: arXiv 1902.04620, Section 4 (regret bound and its trace ratio).
    """

    def __init__(self, variables="."):
        super().__init__()
        self.pattern = variables

    def on_train_begin(self, logs=None):
        """Starts AdaGrad's sums, and compiles the model's step with them."""
        self._optimizer = optimizer = inner(self.model.optimizer)
        expected = {
            "beta_2": None,
            "preconditioner": "geometric_mean",
            "statistic": "sum",
            "epsilon_placement": "axis",
        }
        config = optimizer.get_config()
        found = {k: config.get(k, "none of it") for k in expected}
        wrong = {k: v for k, v in found.items() if v != expected[k]}
        if wrong:
            raise ValueError(
                "TraceRatio compares Algorithm 1 with AdaGrad: the optimizer must "
                f"be an ExtremeTensoring with {expected}. Received: "
                f"{type(optimizer).__name__}, {wrong}"
            )
        if int(optimizer.iterations):
            raise ValueError(
                "TraceRatio must see every step, but the optimizer took "
                f"{int(optimizer.iterations)} before: compile the model anew"
            )
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self._paths = optimizer.watch_diagonals(
            lambda path: re.search(self.pattern, path) is not None
        )
        if not self._paths:
            raise ValueError(
                f"no variable with statistics has a path that matches {self.pattern!r}"
            )
        self.model.make_train_function(force=True)

    def on_epoch_end(self, epoch, logs=None):
        """Adds the ratios to the logs."""
        if logs is not None:
            logs.update(self.ratios())

    def ratios(self) -> dict[str, float]:
        """Returns the ratios of the steps so far, by the names that are logged."""
        # In `fit` on JAX the variables have no values until the model is asked for.
        _ = self.model
        ours, adagrads = zip(*(self._traces(p) for p in self._paths))
        ratios = {"trace_ratio": float(np.sqrt(sum(ours) / sum(adagrads)))}
        for path, a, b in zip(self._paths.values(), ours, adagrads):
            ratios[f"trace_ratio/{path}"] = float(np.sqrt(a / b))
        return ratios

    def on_train_end(self, logs=None):
        """Drops AdaGrad's sums, and compiles the model's step without them."""
        self._optimizer.unwatch_diagonals()
        self.model.make_train_function(force=True)

    def _traces(self, position):
        """Returns Tr(H_ET) and Tr(H_AdaGrad) of one variable."""
        slots = self._optimizer._slots
        epsilon = self._optimizer.epsilon
        diagonal = ops.convert_to_numpy(
            ops.convert_to_tensor(slots.diagonals[position])
        )
        sums = [
            ops.convert_to_numpy(ops.convert_to_tensor(s))
            for s in slots.statistics[position]
        ]
        adagrad = np.sqrt(diagonal.astype(np.float64) + epsilon).sum()
        return inverse_trace(sums, slots.indices[position], epsilon), adagrad
