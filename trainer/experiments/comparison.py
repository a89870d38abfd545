"""Compares optimizers under equal care: tuned rates, then runs with several seeds."""

import functools
import math
import pathlib

from trainer.experiments import results


class Comparison:
    """Makes the runs of one experiment in one folder; finished ones are kept.

    The rate constant c of an entry is the best, with the first seed, of powers of two
    times the c that is known for it: `trials` values about that c, and one beyond for
    as long as the best is the lowest or the highest of them, up to twice as many. With
    one trial there is no search. Optuna keeps the trials.

    Args:
        output_dir: folder for sweep.db and results.jsonl.
        settings: JSON values that tell these runs from others in the folder.
        scale: an `experiment.Scale`; its `trials`, values of c for each entry (those
            that are worse than the median after half of the steps end), and `seeds`,
            runs with the best c.
        known_constant: function of an entry's name, the c to start from.
        train: function (name, c, seed, on_evaluation) -> record, a dict with "loss".
            It calls on_evaluation(step, loss) now and then; what that raises ends it.
        reuse_trials: whether the best trial is the run of seed 0.
    """

    def __init__(
        self,
        output_dir,
        settings,
        scale,
        known_constant,
        train,
        reuse_trials=True,
    ):
        self._output_dir = pathlib.Path(output_dir)
        self._settings = settings
        self._scale = scale
        self._known_constant = known_constant
        self._train = train
        self._reuse_trials = reuse_trials
        self._results = results.Results(self._output_dir / "results.jsonl")

    def records(self, name):
        """Returns the records of an entry with its best c, one a seed.

        That of a seed with which training diverged has the loss nan, and "diverged",
        which says why.
        """
        constant = self._known_constant(name)
        if self._scale.trials > 1:
            constant = self._tuned(name, constant)
        return [
            self._results.run(
                self._key(name, constant, seed),
                functools.partial(self._record, name, constant, seed),
            )
            for seed in range(self._scale.seeds)
        ]

    def _record(self, name, constant, seed):
        from trainer.training import divergence

        try:
            return self._train(name, constant, seed, _ignore)
        except divergence.Diverged as error:
            return {"loss": math.nan, "diverged": str(error)}

    def _tuned(self, name, constant):
        from trainer import files

        busy = (
            f"another process tunes rates in {self._output_dir}: wait for it, or give "
            "another --output_dir"
        )
        with files.lock(self._output_dir / "sweep.db.busy", busy):
            best = self._search(name, constant)
        constant *= 2.0 ** best.params["power"]
        if self._reuse_trials:
            key = self._key(name, constant, 0)
            self._results.run(key, lambda: best.user_attrs["result"])
        return constant

    def _search(self, name, constant):
        """Returns the best of the trials of an entry, after those that are missing.

        What is tried follows from the losses alone, so that a search that was cut off
        goes on as it would have, and one that was finished finds all of its trials.
        """
        from trainer.training import sweep

        def objective(trial):
            c = constant * 2.0 ** trial.suggest_int("power", -_FARTHEST, _FARTHEST)
            half = self._scale.train_steps / 2
            prune = sweep.pruning(trial, math.inf, half)
            with sweep.pruning_diverged():
                record = self._train(name, c, 0, prune)
            trial.set_user_attr("result", record)
            return record["loss"]

        path = self._output_dir / "sweep.db"
        study_name = f"{name} {sorted(self._key(name, constant, 0).items())}"
        count = self._scale.trials
        powers = sorted(powers_of_two(count), key=abs)
        while True:
            first = [{"power": power} for power in powers]
            study = sweep.create_study(path, study_name, first=first, alone=True)
            while set(powers) - {t.params["power"] for t in sweep.ended(study)}:
                sweep.optimize(study, objective, len(sweep.ended(study)) + 1)
            best = sweep.best_trial(study, lambda t: t.params["power"] in powers)
            power = best.params["power"]
            if len(powers) >= 2 * count or min(powers) < power < max(powers):
                return best
            powers.append(power + (1 if power == max(powers) else -1))

    def _key(self, name, constant, seed):
        key = {"experiment": self._scale.experiment}
        return key | {"name": name, "c": constant, "seed": seed} | self._settings


def whole(records):
    """Returns the records of the seeds with which training did not diverge."""
    return [record for record in records if "diverged" not in record]


def powers_of_two(count):
    """Returns the powers of two, about 0, by which the known c is tried."""
    return range(-(count // 2), count - count // 2)


_FARTHEST = 30  # the powers of two that a study may hold


def _ignore(step, loss):
    pass
