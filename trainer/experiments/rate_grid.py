r"""Compares optimizers over a grid of rates, warm-ups and seeds, all runs at once.

    KERAS_BACKEND=jax python -m trainer.experiments.rate_grid --scale=gpu \
        --tmp_dir=FOLDER_OF_TEXT --output_dir=rate_grid

The runs of an optimizer are one program, see `trainer.training.population`: JAX only,
and for a GPU, which a small model leaves idle. c takes `trials` powers of two times the
c known for the optimizer and the width, about it. The best c and warm-up are those of
the least mean loss over the seeds. An entry is OPTIMIZER or OPTIMIZER/NAME=VALUE/...;
`variants` are optimizers, too. What is finished is in OUTPUT_DIR and not run again:
results.jsonl, table.md, perplexity.png, curves.png (and .svg).
"""

import dataclasses
import importlib.util
import itertools
import math

from trainer.bin import cli
from trainer.errors import UsageError
from trainer.experiments import experiment
from trainer.experiments import language_modeling
from trainer.experiments import tradeoff
from trainer.experiments import variants
from trainer.experiments.language_modeling import NO_REGULARIZATION

ENTRIES = ("et2_orthogonal", "adam", "muon", "adagrad", "et2_rank1", "et1", "et2")
ENTRIES += ("et3", "etinf", "sgd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(language_modeling.Scale):
    """Holds the settings of a grid."""

    warmups: tuple  # values of learning_rate_warmup_steps


SCALES = {
    "smoke": Scale(
        problem=language_modeling.SMOKE.problem,
        hparams_set=language_modeling.SMOKE.hparams_set,
        hparams=NO_REGULARIZATION + "batch_size=512",
        max_length=64,
        train_steps=6,
        tmp_dir="testdata",
        entries=("et2_orthogonal", "adam"),
        trials=3,
        seeds=2,
        warmups=(2, 4),
    ),
    # Minutes on a GPU.
    "gpu": Scale(
        problem="text_lines2k_packed",
        hparams_set="transformer_tiny",
        hparams=NO_REGULARIZATION + "batch_size=2048",
        train_steps=2000,
        entries=ENTRIES,
        trials=5,
        seeds=3,
        warmups=(100, 400),
    ),
    # A night on a CPU, some minutes on a GPU.
    "night": Scale(
        problem="text_lines8k_packed",
        hparams_set="transformer_small",
        hparams=NO_REGULARIZATION + "batch_size=4096",
        train_steps=5000,
        entries=ENTRIES,
        trials=3,
        warmups=(500,),
        dtype="mixed_bfloat16",
    ),
}


def conduct(scale, output_dir):
    import keras

    if keras.backend.backend() != "jax":
        raise UsageError(
            "this experiment maps one program over its runs, which is JAX' own: set "
            f"KERAS_BACKEND=jax. It is {keras.backend.backend()}"
        )
    import concurrent.futures
    import os

    from trainer.experiments import report
    from trainer.experiments import results

    variants.register()
    for entry in scale.entries:  # a wrong one is told before anything is made
        tradeoff.known_constant(entry)
    grid = Grid(scale, output_dir, results.Results(output_dir / "results.jsonl"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # One is traced after the other, in this thread; they compile side by side.
        waiting = {}
        for entry in scale.entries:
            if grid.missing(entry):
                population = grid.population(entry)
                waiting[entry] = population, pool.submit(population.compile)
        for entry, (population, compiled) in waiting.items():
            compiled.result()
            grid.train(entry, population)
    finished = {entry: grid.best(entry) for entry in scale.entries}
    table = tradeoff.table(finished)
    report.publish(f"{table}\n\n{grid.table()}", output_dir)
    drawing = map(importlib.util.find_spec, ("matplotlib", "textalloc"))
    if all(drawing):  # not on every machine with a GPU
        tradeoff.plot(finished, None, output_dir)
        print(f"plots: {output_dir / 'perplexity.png'}, {output_dir / 'curves.png'}")


class Grid:
    """Holds the runs of all entries, and the records of those that are finished.

    Args:
        scale: `Scale`.
        output_dir: folder of the data.
        records: `results.Results`.
    """

    def __init__(self, scale, output_dir, records):
        self._scale = scale
        self._warmups = [int(warmup) for warmup in scale.warmups]
        self._runs = language_modeling.Runs(scale, output_dir)
        self._records = records

    def members(self, entry):
        """Returns the `population.Member`s of an entry.

        Raises:
            UsageError: the entry gives what the grid does.
        """
        from trainer import registry
        from trainer.experiments import comparison
        from trainer.training.population import Member

        for name in ("learning_rate_constant", "learning_rate_warmup_steps"):
            if f"/{name}=" in entry:
                raise UsageError(
                    f"entry {entry!r} gives {name}, which the grid does: give "
                    "--warmups, or more --trials"
                )
        hparams = self._runs.hparams.override(tradeoff.assignments(entry))
        constant = registry.optimizers.learning_rate_constant(
            hparams.optimizer, hparams.hidden_size
        )
        powers = comparison.powers_of_two(self._scale.trials)
        rates = [constant * 2.0**power for power in powers]
        seeds = range(self._scale.seeds)
        points = itertools.product(rates, self._warmups, seeds)
        return [Member(*point) for point in points]

    def _key(self, entry, member):
        return {
            "name": entry,
            "c": member.learning_rate_constant,
            "warmup": member.learning_rate_warmup_steps,
            "seed": member.random_seed,
        } | self._runs.settings()

    def missing(self, entry):
        """Returns whether a run of an entry is not finished."""
        found = [self._records.find(self._key(entry, m)) for m in self.members(entry)]
        return None in found

    def population(self, entry):
        """Returns the runs of an entry, traced."""
        from trainer.training.population import Population

        hparams = self._runs.hparams.override(tradeoff.assignments(entry))
        return Population(self._runs.run(hparams), self.members(entry))

    def train(self, entry, population):
        """Trains the runs of an entry, and writes their records."""
        from trainer import progress

        curves = [[] for _ in population.members]

        def on_evaluation(step, nats):
            for curve, value in zip(curves, nats):
                curve.append((step, float(value)))
            line = {"name": entry, "step": step, "nats_per_token": nats.tolist()}
            progress.write(cli.json_text(line))  # what is left of a run that is ended

        seconds = population.train(on_evaluation, entry)
        for member, curve in zip(population.members, curves):
            loss = curve[-1][1]
            record = {
                "loss": loss,
                "curve": curve,
                "dev": {
                    "nats_per_token": loss,
                    "perplexity_per_word": population.perplexity_per_word(loss),
                },
                "parameters": population.parameters,
                "state_scalars": population.state_scalars,
                "seconds": seconds / len(curves),
            }
            self._records.run(self._key(entry, member), lambda record=record: record)

    def _at(self, entry):
        """Returns {(c, warm-up): records of the seeds}."""
        found = {}
        for member in self.members(entry):
            point = member.learning_rate_constant, member.learning_rate_warmup_steps
            record = self._records.find(self._key(entry, member))
            found.setdefault(point, []).append(record)
        return found

    def best(self, entry):
        """Returns the records, one a seed, at the c and warm-up of the least mean."""
        return min(self._at(entry).values(), key=_mean)

    def table(self):
        """Returns the mean loss at every point of the grid, a line an entry."""
        from trainer.experiments import comparison
        from trainer.experiments import report

        powers = comparison.powers_of_two(self._scale.trials)
        columns = [
            "optimizer",
            "warm-up",
            "known c",
            *(f"c x {2.0**p:g}" for p in powers),
        ]
        rows = []
        for entry in self._scale.entries:
            at = self._at(entry)
            rates = sorted({c for c, _ in at})
            for warmup in self._warmups:
                losses = (_mean(at[c, warmup]) for c in rates)
                rows.append(
                    (
                        entry,
                        warmup,
                        f"{rates[powers.index(0)]:.3g}",
                        *(f"{loss:.4f}" for loss in losses),
                    )
                )
        return report.markdown(columns, rows)


def _mean(records):
    mean = sum(record["loss"] for record in records) / len(records)
    return mean if math.isfinite(mean) else math.inf


run = experiment.entry_point(
    conduct,
    SCALES,
    __doc__,
    __name__,
    changes=[
        *language_modeling.define_changes(),
        cli.DEFINE_counts("warmups", None, "Values of learning_rate_warmup_steps."),
    ],
)

if __name__ == "__main__":
    run()
