"""Compares optimizers under equal care: tuned rates, then runs with several seeds."""

import functools
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
        scale: its `trials`, values of c for each entry (those worse than the median
            end early), and `seeds`, runs with the best c.
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
        """Returns the records of an entry with its best c, one a seed."""
        constant = self._known_constant(name)
        if self._scale.trials > 1:
            constant = self._tuned(name, constant)
        return [
            self._results.run(
                self._key(name, constant, seed),
                functools.partial(self._train, name, constant, seed, _ignore),
            )
            for seed in range(self._scale.seeds)
        ]

    def _tuned(self, name, constant):
        from trainer.training import sweep

        def objective(trial):
            c = constant * 2.0 ** trial.suggest_int("power", -_FARTHEST, _FARTHEST)
            with sweep.pruning_diverged():
                record = self._train(name, c, 0, sweep.pruning(trial, float("inf")))
            trial.set_user_attr("result", record)
            return record["loss"]

        path = self._output_dir / "sweep.db"
        study_name = f"{name} {sorted(self._settings.items())}"
        count = self._scale.trials
        powers = sorted(powers_of_two(count), key=abs)
        while True:
            first = [{"power": power} for power in powers]
            study = sweep.create_study(path, study_name, first=first)
            sweep.optimize(study, objective, len(powers))
            best = sweep.best_trial(study)
            power = best.params["power"]
            if len(powers) >= 2 * count or min(powers) < power < max(powers):
                break
            powers.append(power + (1 if power == max(powers) else -1))
        constant *= 2.0**power
        if self._reuse_trials:
            key = self._key(name, constant, 0)
            self._results.run(key, lambda: best.user_attrs["result"])
        return constant

    def _key(self, name, constant, seed):
        return {"name": name, "c": constant, "seed": seed} | self._settings


def powers_of_two(count):
    """Returns the powers of two, about 0, by which the known c is tried."""
    return range(-(count // 2), count - count // 2)


_FARTHEST = 30  # the powers of two that a study may hold


def _ignore(step, loss):
    pass
