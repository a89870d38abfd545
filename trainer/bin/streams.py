"""The standard streams of a program, and what it says and returns when it fails."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from trainer.errors import UsageError
from trainer.files import system_reason

NAMES = ("standard output", "standard error")
CLOSED_PIPE = 128 + 13  # the status of a program that SIGPIPE ended


def prepare() -> None:
    """Makes the standard streams take any text and give UTF-8."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started this program
            setattr(sys, name, open(os.devnull, mode))
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    sys.stdout = _Output(NAMES[0], sys.stdout)
    sys.stderr = _Output(NAMES[1], sys.stderr)


def guarded(function: Callable[[], Any]) -> Any:
    """Calls a program, says in one line why it failed, and returns its exit status."""
    try:
        try:
            function()
            status = 0
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _fail(error)
    except UnicodeDecodeError as error:
        return _fail(f"the input is not UTF-8 text: {error}")
    except KeyboardInterrupt:
        return _fail("interrupted", prefix="", status=130)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename in NAMES:
            return CLOSED_PIPE  # who reads the output has seen enough: `| head`
        return _fail(system_reason(error))


def _fail(reason, prefix="error: ", status=1):
    text = " ".join(str(reason).split())  # a library's has many lines
    with contextlib.suppress(OSError):  # the status alone says it
        print(f"{prefix}{text}", file=sys.stderr)
    return status


class _Output(io.TextIOWrapper):
    """A standard stream whose errors name it, and which takes any text.

    The system's errors do not say which file was written to. Characters that the
    encoding of the stream lacks become backslash escapes.
    """

    def __init__(self, name, stream):
        super().__init__(
            stream.buffer,
            stream.encoding,
            "backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._name = name
        self._stream = stream  # would close the buffer if it went

    def write(self, text):
        with self._named():
            return super().write(text)

    def flush(self):
        with self._named():
            super().flush()

    @contextlib.contextmanager
    def _named(self):
        try:
            yield
        except OSError as error:
            # The interpreter writes what is left when it ends: to nowhere, then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            error.filename = self._name
            raise
