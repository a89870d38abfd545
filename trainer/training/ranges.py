"""The ranges of a search: their text, their values, and which cannot be trained."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from trainer import registry
from trainer.errors import HParamsError
from trainer.errors import UsageError
from trainer.errors import unknown
from trainer.hparams import HParams

# Hparams whose values are names.
_NAMED = {
    "optimizer": registry.optimizers,
    "learning_rate_schedule": registry.schedules,
}


@dataclasses.dataclass(frozen=True)
class Range:
    """Holds the values that a hyperparameter may take: choices, or an interval.

    Attributes:
        choices: values; empty for an interval.
        low, high: ends of the interval, both inside; integers for an integer.
        log: whether the interval is searched on a logarithmic scale.
    """

    choices: tuple = ()
    low: float | int = 0
    high: float | int = 0
    log: bool = False

    def suggest(self, trial, name: str) -> Any:
        """Returns the value that an Optuna trial takes for a hyperparameter."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def samples(self) -> tuple:
        """Returns the choices, or the ends of the interval."""
        return self.choices or (self.low, self.high)

    def __str__(self):
        if self.choices:
            return "|".join(map(str, self.choices))
        return f"{self.low}:{self.high}{':log' if self.log else ''}"


def parse(text: str) -> dict[str, Range]:
    """Returns the ranges of "name=a|b|c,name=LOW:HIGH,name=LOW:HIGH:log", by name.

    Raises:
        UsageError: a name is no hyperparameter, or a value is not of its type, or
            names nothing that is registered: a trial would find it out hours later.
    """
    types: dict = {f.name: f.type for f in dataclasses.fields(HParams)}
    ranges = {}
    for item in filter(None, text.split(",")):
        name, separator, values = item.partition("=")
        if name not in types:
            raise unknown("hparam", name, types)
        if name in ranges:
            raise UsageError(f"{name} has two ranges: give one")
        try:
            if not separator or not values:
                raise ValueError
            ranges[name] = _parse_range(values, types[name])
        except ValueError:
            raise UsageError(
                f"range {item!r} is not NAME=A|B|..., NAME=LOW:HIGH or "
                f"NAME=LOW:HIGH:log of {types[name].__name__} values, LOW below HIGH"
            ) from None
    for name in ranges.keys() & _NAMED.keys():
        for value in ranges[name].choices:
            _NAMED[name].get(value)
    if not ranges:
        raise UsageError("no range to search: give NAME=LOW:HIGH or NAME=A|B")
    return ranges


def _parse_range(text, kind):
    if ":" not in text:
        return Range(choices=tuple(kind(value) for value in text.split("|")))
    low, high, *log = text.split(":")
    low, high = kind(low), kind(high)
    if (
        kind is str
        or not -math.inf < low < high < math.inf
        or log not in ([], ["log"])
        or (log and low <= 0)
    ):
        raise ValueError
    return Range(low=low, high=high, log=bool(log))


def check(
    ranges: dict[str, Range],
    hparams: HParams,
    suits: Callable[[HParams], object] = lambda hparams: None,
) -> None:
    """Refuses ranges with a value that cannot be trained, before a trial draws it.

    A choice, or an end of an interval, is refused if it goes neither with the other
    hyperparameters as they are nor with a value that one of them may take: no check
    of `HParams` is about more than two. What remains are combinations of values that
    each can be trained; trials find those out.

    Args:
        ranges: of the search, by name.
        hparams: those that the search changes.
        suits: function that raises an `HParamsError` for hparams that suit not the
            data.

    Raises:
        UsageError: see above; it names the range.
    """

    def error(changes):
        try:
            suits(dataclasses.replace(hparams, **changes))
        except HParamsError as found:
            return found
        return None

    for name, values in ranges.items():
        others = [
            {other: value}
            for other, r in ranges.items()
            if other != name
            for value in r.samples()
        ]
        for value in values.samples():
            alone = error({name: value})
            if alone and all(error(other | {name: value}) for other in others):
                raise UsageError(
                    f"--hparams_range: {name}={value} of {name}={values} cannot be "
                    f"trained: {alone}. Leave it out of the range, or change --hparams"
                )
