"""Gives the binaries their kinds of flags, their --help and their entry points.

Imports neither Keras nor NumPy: `--help` answers at once.
"""

import contextlib
import json
import logging
import math
import os
import sys
import textwrap
from collections.abc import Callable
from collections.abc import Sequence
from typing import IO
from typing import Any

from absl import app
from absl import flags
from absl import logging as absl_logging

from trainer.bin import streams
from trainer.errors import UsageError
from trainer.errors import unknown
from trainer.sizes import Bytes

# Of flags that `require` checks or that have a default: their value is not None.
Holder = flags.FlagHolder[Any]

flags.disclaim_key_flags()  # the flags below are those of the module that calls

SEED_MAX = 2**32 - 1  # NumPy, Grain and Optuna take no larger seed
COUNT_MAX = 2**31 - 1
COLUMNS = 80  # of --help, where those on the right begin at the second number
HELP_COLUMN = 33


class _PathParser(flags.ArgumentParser):
    """Accepts a path; "~" is the home folder, also where the shell leaves it."""

    syntactic_help = "a path"

    def parse(self, argument):
        if not argument:
            raise ValueError("it must be a path and is empty")
        return os.path.expanduser(argument)


class _PathsParser(flags.ListParser):
    """Accepts paths with commas between them."""

    def parse(self, argument):
        return [_PathParser().parse(path) for path in super().parse(argument)]


class _SizeParser(flags.ArgumentParser):
    """Accepts a size of memory: 4096, 64KB, 1.5MB."""

    syntactic_help = "a size"

    def parse(self, argument):
        return Bytes(argument)


def DEFINE_path(name: str, default: str | None, help: str, **options: Any) -> Holder:
    """Defines a flag whose value is a path, and returns its holder."""
    serializer = flags.ArgumentSerializer()
    return flags.DEFINE(
        _PathParser(), name, default, help, serializer=serializer, **options
    )


def DEFINE_paths(name: str, default: list | None, help: str) -> Holder:
    """Defines a flag whose value is a list of paths, and returns its holder."""
    return flags.DEFINE(
        _PathsParser(), name, default, help, serializer=flags.ListSerializer(",")
    )


def DEFINE_size(name: str, default: str | None, help: str) -> Holder:
    """Defines a flag whose value is a size in bytes, and returns its holder."""
    return flags.DEFINE(
        _SizeParser(), name, default, help, serializer=flags.ArgumentSerializer()
    )


def DEFINE_count(name: str, default: int | None, help: str, least: int = 1) -> Holder:
    """Defines a flag whose value is a whole number from `least` to `COUNT_MAX`."""
    return flags.DEFINE_integer(
        name, default, help, lower_bound=least, upper_bound=COUNT_MAX
    )


def DEFINE_counts(name: str, default: str | list | None, help: str) -> Holder:
    """Defines a flag whose value is a list of whole numbers of 1 and more."""
    holder = flags.DEFINE_list(name, default, help)
    flags.register_validator(
        holder,
        lambda items: all(
            i.isdecimal() and 0 < int(i) <= COUNT_MAX for i in items or ()
        ),
        "must be whole numbers of 1 and more with commas between them",
    )
    return holder


def DEFINE_seed(help: str) -> Holder:
    """Defines `--random_seed` within the bounds of the libraries that draw."""
    return flags.DEFINE_integer(
        "random_seed", 0, help, lower_bound=0, upper_bound=SEED_MAX
    )


def DEFINE_number(
    name: str,
    default: float,
    help: str,
    allowed: Callable[[float], bool] = lambda x: 0 <= x < math.inf,
    expected: str = "0 or more",
) -> Holder:
    """Defines a flag whose value is a finite number, and returns its holder.

    Args:
        name: of the flag.
        default: its value where it is not given.
        help: text of --help.
        allowed: function of the value. It must be false for nan and for inf.
        expected: the values that are allowed, in words, for the error.
    """
    holder = flags.DEFINE_float(name, default, help)
    flags.register_validator(holder, allowed, f"must be a number, {expected}")
    return holder


_USR_DIR = DEFINE_path(
    "usr_dir",
    None,
    "Folder of Python files of your own to import.",
    module_name=__name__,
)


def no_arguments(argv: list[str]) -> None:
    """Refuses words that are not flags: usually a flag without its dashes."""
    if argv[1:]:
        raise UsageError(
            f"unexpected argument {argv[1]!r}: every option is a flag, --name=value"
        )


def require(*holders: flags.FlagHolder) -> None:
    """Refuses a run that lacks a flag it cannot do without."""
    missing = [f"--{h.name}" for h in holders if h.value is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given. See --help.")


def refuse(holders: Sequence[flags.FlagHolder], why: str) -> None:
    """Refuses flags that were given and have no effect beside the others.

    Args:
        holders: of the flags.
        why: "with" or "without" another flag, and the reason.
    """
    given = [f"--{h.name}" for h in holders if flags.FLAGS[h.name].present]
    if given:
        raise UsageError(f"{', '.join(given)} cannot be given {why}")


@contextlib.contextmanager
def lines(flag, path):
    """Gives the lines of a text file, or of standard input where the path is "-"."""
    from trainer.data import text

    name = f"--{flag}={path}"
    with contextlib.ExitStack() as stack:
        file = sys.stdin.buffer
        if path != "-":
            try:  # before a model is loaded
                file = stack.enter_context(open(path, "rb"))
            except OSError as error:
                raise UsageError(f"{name} cannot be read: {error.strerror}") from None
        yield text.lines(file, name)


def print_json(value: Any, file: IO[str] | None = None) -> None:
    """Prints a value as one line of JSON; see `json_text`."""
    print(json_text(value), file=file, flush=True)


def json_text(value: Any, **options: Any) -> str:
    """Returns a value as JSON, in which nan and infinity are null.

    Args:
        value: dicts, lists, tuples, strings, numbers, booleans and None.
        **options: of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def entry_point(
    main: Callable, usage: str | None, module: str, seldom: Sequence[str] = ()
) -> Callable[[], None]:
    """Returns a function without arguments that runs `main(argv)` as a program.

    Every program has the flag --usr_dir: what the user's folder registers is there
    before `main` runs.

    Args:
        main: takes argv after flags were parsed; imports late, so that --help
            and errors answer at once. Returns the exit status, or None for 0.
        usage: text that --help prints before the flags.
        module: name of the module that defines the flags.
        seldom: names of flags that --helpfull shows and --help does not: what --help
            prints fits a screen.
    """

    def parse(argv):
        if {"--help", "-help", "-h", "--helpfull"} & set(argv):
            hidden = () if "--helpfull" in argv else seldom
            print((usage or "").strip() + "\n\nFlags:")
            print(_flags_of(module, hidden))
            if hidden:
                print(f"{len(hidden)} more that are seldom needed: --helpfull")
            sys.exit(0)
        try:
            return flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            names = [f"--{flag.name}" for flag in _defined(module)]
            name = f"--{error.flagname}"
            raise unknown("flag", name, names, more="See --helpfull.") from None
        except flags.Error as error:
            raise UsageError(f"{error}. See --help.") from None

    def with_usr_dir(argv):
        if _USR_DIR.value:
            from trainer import registry

            registry.import_usr_dir(_USR_DIR.value)
        return main(argv)

    def run():
        streams.prepare()
        quieten()
        sys.exit(streams.guarded(lambda: app.run(with_usr_dir, flags_parser=parse)))

    return run


# Of every program that trains models one after the other, and of every one without JAX.
_NEEDLESS = ("triggered tf.function retracing", "Failed to load jax profiler")


def quieten() -> None:
    """Leaves warnings and errors that a user can act on, of TensorFlow and of Grain."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).addFilter(_is_needed)


def _is_needed(record):
    return not any(text in record.getMessage() for text in _NEEDLESS)


def flags_text(module: str) -> str:
    """Returns the flags that were given, one a line, as `--flagfile` reads them."""
    given = [f for f in _defined(module) if f.present]
    return "".join(f"{flag.serialize()}\n" for flag in given)


def _flags_of(module, hidden):
    """Returns two columns: the flags with their defaults, and what they are for."""
    rows = []
    for flag in _defined(module):
        if flag.name in hidden:
            continue
        name = f"  --{'no' if flag.boolean and flag.default else ''}{flag.name}"
        if not flag.boolean:
            name += f"={(flag.default_as_str or '').strip(chr(39))}"
        first, *more = textwrap.wrap(flag.help, COLUMNS - HELP_COLUMN)
        if len(name) < HELP_COLUMN - 1:
            rows.append(f"{name:<{HELP_COLUMN}}{first}")
        else:
            rows += [name, " " * HELP_COLUMN + first]
        rows += [" " * HELP_COLUMN + line for line in more]
    return "\n".join(rows)


def _defined(module):
    """Returns the flags of a program, whose module is __main__ or imported."""
    defined = flags.FLAGS.flags_by_module_dict()
    names = [n for n in (module, "__main__", sys.argv[0]) if n in defined]
    return (defined[names[0]] if names else []) + defined[__name__]
