r"""Measures the constant of the regret bound while a language model trains.

    python -m trainer.experiments.trace_ratio --scale=cpu \
        --tmp_dir=FOLDER_OF_THE_UNPACKED_ARCHIVE --output_dir=trace_ratio

sqrt(Tr(H_ET) / Tr(H_AdaGrad)) of Algorithm 1 at each level, both from the
gradients that ET's own run sees: see `extreme_tensoring_tf.TraceRatio`. Regret is at
most this times AdaGrad's bound. Each level runs with the c that is known for it.

Source: arXiv 1902.04620, Section 4.
"""

import dataclasses

from trainer.experiments import experiment
from trainer.experiments import language_modeling

LEVELS = ("et1_sum", "et2_sum", "et3_sum", "etinf_sum")
SCALES = {
    "smoke": dataclasses.replace(
        language_modeling.SMOKE, entries=("et1_sum", "etinf_sum")
    ),
    "cpu": dataclasses.replace(language_modeling.TINY, entries=LEVELS),
    "gpu": dataclasses.replace(language_modeling.BASE, entries=LEVELS),
    "paper": dataclasses.replace(language_modeling.PAPER, entries=LEVELS),
}


def conduct(scale, output_dir):
    from trainer.experiments import report
    from trainer.experiments import results

    runs = language_modeling.Runs(scale, output_dir)
    found = results.Results(output_dir / "results.jsonl")
    finished = {
        name: found.run(
            {"name": name} | runs.settings(),
            lambda name=name: watched(runs, name, scale.train_steps),
        )
        for name in scale.entries
    }
    columns = ("level", "state scalars", "ratio, first steps", "ratio, last step")
    columns += ("smallest of a variable", "largest of a variable", "nats per token")
    rows = []
    for name, record in finished.items():
        variables = sorted((r, path) for path, r in record["variables"].items())
        ends = [f"{ratio:.2f}, {path}" for ratio, path in (variables[0], variables[-1])]
        (step, first), (_, last) = record["ratios"][0], record["ratios"][-1]
        rows.append((name, record["state_scalars"], f"{first:.2f} (step {step})"))
        rows[-1] += (f"{last:.2f}", *ends, f"{record['loss']:.4f}")
    report.publish(report.markdown(columns, rows), output_dir)
    curves = {name: record["ratios"] for name, record in finished.items()}
    label = "sqrt(Tr(H_ET) / Tr(H_AdaGrad))"
    report.curves_plot(output_dir / "ratios", curves, "step", label)
    print(f"plot: {output_dir / 'ratios.png'}")


def watched(runs, name, steps):
    """Trains at one level and returns a record with the ratio at some 50 steps."""
    from extreme_tensoring_tf import TraceRatio

    class Ratios(TraceRatio):
        points: list = []
        last: dict = {}

        def on_train_batch_end(self, batch, logs=None):
            if (batch + 1) % max(1, steps // 50) == 0 or batch + 1 == steps:
                self.last = {}
                self.on_epoch_end(0, self.last)
                self.points.append((batch + 1, self.last.pop("trace_ratio")))

    ratios = Ratios()
    record = runs.train(name, 0, lambda *_: None, callbacks=[ratios], optimizer=name)
    prefix = "trace_ratio/"
    variables = {k.removeprefix(prefix): float(v) for k, v in ratios.last.items()}
    return record | {"ratios": ratios.points, "variables": variables}


run = experiment.entry_point(
    conduct, SCALES, __doc__, __name__, changes=language_modeling.define_changes()
)

if __name__ == "__main__":
    run()
