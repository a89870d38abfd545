"""Defines the errors that a user can mend, and what a signal raises."""

import difflib
import signal
from collections.abc import Iterable


class UsageError(ValueError):
    """Says that input is bad: names the value, what was expected and what to do.

    The binaries print it as one line and exit with status 1.
    """


class HParamsError(UsageError):
    """Says that hyperparameters cannot be trained: alone, together or with the data.

    A search ends such a trial and goes on with others: what makes a model or
    an optimizer may raise it, too.
    """


class Interrupted(KeyboardInterrupt):
    """Says that a signal ends the program.

    Attributes:
        signal: SIGINT or SIGTERM, a `signal.Signals`.
    """

    def __init__(self, number: int):
        self.signal = signal.Signals(number)
        super().__init__(f"interrupted by {self.signal.name}")


def unknown(kind: str, name: str, known: Iterable[str], more: str = "") -> UsageError:
    """Returns the error of a name that nothing has, with the name that is most like it.

    Args:
        kind: what the name would be of, such as "optimizer".
        name: that was given.
        known: all names there are.
        more: sentence that ends the text. It lists the names where it is empty.
    """
    known = list(known)
    text = f"unknown {kind} {name!r}."
    if alike := difflib.get_close_matches(name, known, n=1):
        text += f" Did you mean {alike[0]}?"
    return UsageError(f"{text} {more or 'Known: ' + ', '.join(known)}")
