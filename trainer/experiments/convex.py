r"""Compares optimizers on a convex problem: softmax regression, badly conditioned.

    python -m trainer.experiments.convex --scale=cpu

minimize over W   f(W) = mean over n of  log sum_k exp(<W_k, x_n>) - <W_{y_n}, x_n>

where
    x_n: points of 512 dimensions, drawn from a Gaussian whose covariance has
        eigenvalues from 1 to 1e-4 in a random basis;
    y_n: one of 10 classes, drawn from the softmax of W* x_n, W* random and such that
        logits have variance 4.

W, (10, 512), is indexed as (10, 512), (10, 16, 32) and (10, 8, 8, 8): depth 1, 2, 3.
Every step takes the gradient of all points; the rate is constant, tuned as `comparison`
says.
The floor is the minimum that L-BFGS finds.

Source: arXiv 1902.04620, Section 5 (synthetic experiments).
"""

import dataclasses
from typing import Any

import numpy as np

from trainer.experiments import experiment

CLASSES = 10
# Entry -> dims of W. "et" first: they are ours.
DIMS = {"et1": (10, 512), "et2": (10, 16, 32), "et3": (10, 8, 8, 8), "etinf": (1,)}
ENTRIES = ("sgd", "adagrad", *DIMS)
# Rates to start the search from.
CONSTANTS = {"sgd": 3.0, "adagrad": 0.1, "etinf": 10.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(experiment.Scale):
    points: int = 10_000
    features: int = 512
    condition: float = 1e4


PAPER = Scale(entries=ENTRIES, train_steps=2000, trials=20, seeds=3)
SCALES = {
    "smoke": Scale(entries=ENTRIES, train_steps=20, trials=2, points=500),
    "cpu": dataclasses.replace(PAPER, train_steps=500, trials=6, seeds=2),
    "gpu": PAPER,
    "paper": PAPER,
}


class Problem:
    """Holds the points of a seed, and gives f and its gradient."""

    def __init__(self, scale, seed):
        rng = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(rng.normal(size=(scale.features, scale.features)))
        spectrum = np.geomspace(1, 1 / scale.condition, scale.features)
        points = rng.normal(size=(scale.points, scale.features)) * np.sqrt(spectrum)
        self.x = (points @ basis.T).astype("float32")
        truth = rng.normal(size=(CLASSES, scale.features))
        # Logits of variance 4: larger ones make labels that a plane can separate,
        # and then there is no minimum.
        truth *= 2 / np.sqrt(spectrum.sum())
        noise = rng.gumbel(size=(scale.points, CLASSES))  # argmax draws from softmax
        self._y = np.argmax(self.x @ truth.T + noise, axis=1)
        self.shape = truth.shape

    def value_and_gradient(self, w):
        """Returns f(w) in nats, a float, and its gradient, an array like w."""
        logits = self.x @ w.T
        logits -= logits.max(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.arange(len(self._y))
        loss = -float(logs[rows, self._y].mean(dtype="float64"))
        residual = np.exp(logs)
        residual[rows, self._y] -= 1
        return loss, (residual.T @ self.x) / len(self.x)

    def minimum(self):
        """Returns the lowest value that L-BFGS finds in float64."""
        from scipy import optimize

        self.x = self.x.astype("float64")

        def flat(w):
            loss, gradient = self.value_and_gradient(w.reshape(self.shape))
            return loss, gradient.ravel()

        found = optimize.minimize(
            flat,
            np.zeros(self.shape).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-7},
        )
        return float(found.fun)


def optimizer(name, rate):
    """Returns the Keras optimizer of an entry."""
    import keras

    from extreme_tensoring_tf import ExtremeTensoring
    from trainer.optim import catalog

    if name == "sgd":
        return keras.optimizers.SGD(rate)
    if name == "adagrad":
        return keras.optimizers.Adagrad(
            rate, initial_accumulator_value=0.0, epsilon=1e-12
        )
    form: Any = catalog.ALGORITHM_1 | {"epsilon": 1e-12}
    if name == "etinf":
        return ExtremeTensoring(rate, **form | {"level": "inf"})
    return ExtremeTensoring(rate, tensor_dims={"w": DIMS[name]}, **form)


def minimize(problem, optimizer, steps, label, on_evaluation):
    """Runs an optimizer from W = 0 and returns [(step, f), ...]."""
    import keras

    from trainer import progress

    w = keras.Variable(np.zeros(problem.shape, "float32"), name="w")
    optimizer.build([w])
    every = max(1, steps // 100)
    curve = []
    for step in progress.over(range(steps + 1), label):
        loss, gradient = problem.value_and_gradient(keras.ops.convert_to_numpy(w))
        if step % every == 0 or step == steps:
            curve.append((step, loss))
            if step and step % max(1, steps // 5) == 0:
                on_evaluation(step, loss)
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [w])
    return curve


def conduct(scale, output_dir):
    from trainer.experiments import comparison
    from trainer.experiments import report
    from trainer.experiments import results
    from trainer.optim import optimizer_state

    settings = dataclasses.asdict(scale)
    names = ("experiment", "train_steps", "points", "features")
    settings = {n: settings[n] for n in names}
    problems = [Problem(scale, seed) for seed in range(scale.seeds)]
    found = results.Results(output_dir / "results.jsonl")
    floors = [
        found.run(
            {"name": "l-bfgs", "seed": seed} | settings,
            lambda seed=seed: {"loss": Problem(scale, seed).minimum()},
        )["loss"]
        for seed in range(scale.seeds)
    ]

    def train(name, rate, seed, on_evaluation):
        chosen = optimizer(name, rate)
        label = f"{name} {rate:.3g}"
        steps = scale.train_steps
        curve = minimize(problems[seed], chosen, steps, label, on_evaluation)
        return {
            "loss": curve[-1][1],
            "curve": curve,
            "state_scalars": optimizer_state.state_scalars(chosen),
        }

    compared = comparison.Comparison(
        output_dir, settings, scale, lambda name: CONSTANTS.get(name, 1.0), train
    )
    finished = {name: compared.records(name) for name in scale.entries}
    rows = [
        (
            name,
            "x".join(map(str, DIMS.get(name, ()))),
            f"{records[0]['c']:.3g}",
            records[0]["state_scalars"],
            report.mean_and_spread([r["loss"] for r in records], 4),
            report.mean_and_spread(
                [r["loss"] - floor for r, floor in zip(records, floors)], 4
            ),
        )
        for name, records in finished.items()
    ]
    rows.append(("(L-BFGS)", "", "", "", report.mean_and_spread(floors, 4), ""))
    columns = (
        "optimizer",
        "dims",
        "rate",
        "state scalars",
        "loss",
        "above the minimum",
    )
    report.publish(report.markdown(columns, rows), output_dir)
    report.curves_plot(
        output_dir / "curves",
        {
            name: [(s, f - floors[0]) for s, f in records[0]["curve"] if s]
            for name, records in finished.items()
        },
        "step",
        "loss above the minimum, nats",
        log_x=True,
        log_y=True,
    )
    print(f"plot: {output_dir / 'curves.png'}")


run = experiment.entry_point(conduct, SCALES, __doc__, __name__, needs_data=False)

if __name__ == "__main__":
    run()
