r"""Spends the memory that Adam's state takes on a model of twice the layers.

    python -m trainer.experiments.doubled_model --scale=cpu \
        --tmp_dir=FOLDER_OF_THE_UNPACKED_ARCHIVE --output_dir=doubled_model

An entry is OPTIMIZER or OPTIMIZER_doubled. Memory is that of parameters, gradients
and optimizer state, 4 bytes a scalar; the budget is that of the first entry. Perplexity
is reported after the same steps, and after the time that the first entry took with the
same seed (training alone), or at the end where that came sooner. Rates are tuned as
`comparison` says.

Source: arXiv 1902.04620, Section 5 (larger model under the memory budget).
"""

import dataclasses

import numpy as np

from trainer.errors import UsageError
from trainer.experiments import experiment
from trainer.experiments import language_modeling

DOUBLED = "_doubled"
ENTRIES = ("adam", "et2_rank1", "et2_rank1_doubled", "et2_doubled", "adam_doubled")
SCALES = {
    "smoke": dataclasses.replace(
        language_modeling.SMOKE, entries=("adam", "et2_doubled")
    ),
    "cpu": dataclasses.replace(
        language_modeling.TINY, entries=ENTRIES, trials=4, seeds=3
    ),
    "gpu": dataclasses.replace(
        language_modeling.BASE, entries=ENTRIES, trials=5, dtype="mixed_bfloat16"
    ),
    "paper": dataclasses.replace(
        language_modeling.PAPER, entries=ENTRIES, trials=5, dtype="mixed_bfloat16"
    ),
}


def conduct(scale, output_dir):
    from trainer.experiments import comparison
    from trainer.experiments import report

    runs = language_modeling.Runs(scale, output_dir)

    def train(name, constant, seed, on_evaluation):
        layers = runs.hparams.num_hidden_layers * (2 if name.endswith(DOUBLED) else 1)
        record = runs.train(
            f"{name} c={constant:.3g} seed {seed}",
            seed,
            on_evaluation,
            optimizer=name.removesuffix(DOUBLED),
            learning_rate_constant=constant,
            num_hidden_layers=layers,
        )
        return record | {"layers": layers}

    compared = comparison.Comparison(
        output_dir,
        runs.settings(),
        scale,
        lambda name: language_modeling.known_constant(name.removesuffix(DOUBLED)),
        train,
    )
    finished = {name: compared.records(name) for name in scale.entries}
    for name, records in finished.items():
        if len(comparison.whole(records)) < len(records):
            reasons = [r["diverged"] for r in records if "diverged" in r]
            raise UsageError(f"{name}: {reasons[0]}. Leave it out of --entries")
    report.publish(tabulate(finished), output_dir)
    for x, unit in (("steps", "step"), ("hours", "hours of training")):
        report.curves_plot(
            output_dir / x,
            {name: curve(records[0], x) for name, records in finished.items()},
            unit,
            "held-out nats per token",
        )
    print(f"plots: {output_dir / 'steps.png'}, {output_dir / 'hours.png'}")


def memory(record):
    """Returns the bytes of parameters, gradients and optimizer state."""
    return 4 * (2 * record["parameters"] + record["state_scalars"])


def curve(record, x):
    """Returns [(steps or hours, nats per token), ...] of a run."""
    if x == "steps":
        return record["curve"]
    hours = record["seconds"] / record["steps"] / 3600
    return [(step * hours, nats) for step, nats in record["curve"]]


def after(hours, points):
    """Returns the nats per token after some hours, from a curve over hours."""
    x, y = zip(*points)
    return float(np.interp(hours, x, y))


def tabulate(finished):
    """Returns the table of {entry: records of its seeds}, a line an entry."""
    from trainer.experiments import report

    columns = ("entry", "layers", "c", "parameters", "state scalars", "memory")
    columns += ("in budget", "nats per token", "after the first entry's time")
    columns += ("seconds a run",)
    first, *_ = finished.values()
    budget = memory(first[0])
    hours = [curve(record, "hours")[-1][0] for record in first]
    rows = []
    for name, records in finished.items():
        one = records[0]
        rows.append(
            (
                name,
                one["layers"],
                f"{one['c']:.3g}",
                one["parameters"],
                one["state_scalars"],
                f"{memory(one) / 1e6:,.2f} MB",
                "yes" if memory(one) <= budget else "no",
                report.mean_and_spread([r["loss"] for r in records], 4),
                report.mean_and_spread(
                    [after(h, curve(r, "hours")) for h, r in zip(hours, records)], 4
                ),
                f"{np.mean([r['seconds'] for r in records]):.0f}",
            )
        )
    return report.markdown(columns, rows)


run = experiment.entry_point(
    conduct, SCALES, __doc__, __name__, changes=language_modeling.define_changes()
)

if __name__ == "__main__":
    run()
