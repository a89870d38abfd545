"""What the binaries share: `--help`, one-line errors, exit status."""

import contextlib
import os
import sys

from absl import app
from absl import flags
from absl import logging

from trainer.errors import UsageError


def no_arguments(argv):
    """Refuses words that are not flags: usually a flag without its dashes."""
    if argv[1:]:
        raise UsageError(
            f"unexpected argument {argv[1]!r}: every option is a flag, --name=value"
        )


def require(*holders):
    """Refuses a run that lacks a flag it cannot do without."""
    missing = [f"--{h.name}" for h in holders if h.value is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given. See --help.")


def require_positive(*holders):
    for holder in holders:
        if holder.value is not None and holder.value < 1:
            raise UsageError(f"--{holder.name} must be >= 1. Got {holder.value}")


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


def entry_point(main, usage, module):
    """A function without arguments that runs `main(argv)` as a program.

    Args:
        main: takes argv after flags were parsed; imports late, so that --help
            and errors answer at once.
        usage: text that --help prints before the flags.
        module: name of the module that defines the flags.
    """

    def guarded(argv):
        try:
            return main(argv)
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    def parse(argv):
        if {"--help", "-help", "-h", "--helpfull"} & set(argv):
            print(usage.strip() + "\n\nFlags:\n")
            print(_flags_of(module))
            sys.exit(0)
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            print(f"error: {error}. See --help.", file=sys.stderr)
            sys.exit(1)

    def run():
        quieten()
        app.run(guarded, flags_parser=parse)

    return run


def quieten():
    """Leaves warnings and errors of TensorFlow, and drops what it says besides."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.WARNING)


def flags_text(module):
    """The flags that were given, one a line, as `--flagfile=FILE` reads them."""
    given = [f for f in _defined(module) if f.present]
    return "".join(f"{flag.serialize()}\n" for flag in given)


def _flags_of(module):
    return "\n".join(
        f"  --{flag.name}={flag.default_as_str or ''}\n      {flag.help}"
        for flag in _defined(module)
    )


def _defined(module):
    """The flags that a module defines (run as __main__ or imported)."""
    defined = flags.FLAGS.flags_by_module_dict()
    names = [n for n in (module, "__main__", sys.argv[0]) if n in defined]
    return defined[names[0]] if names else []
