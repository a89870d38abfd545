"""The other processes of a program: they run beside it, and end with it."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from collections.abc import Sequence

from trainer.errors import Interrupted


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """Makes SIGINT and SIGTERM exceptions of a block: what it began is ended.

    Raises:
        Interrupted: one of them came.
    """

    def interrupt(number, frame):
        raise Interrupted(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def started(commands: Sequence[Sequence[str]]) -> Iterator[list[subprocess.Popen]]:
    """Runs processes beside a block, and waits for them at its end.

    Whatever the block or the wait raises, an interruption or an error, they are told to
    stop, and waited for; if that is interrupted, too, they are killed. Each has a pipe
    for its standard input, that `end_with_parent` watches.

    Args:
        commands: of the processes.
    """
    processes: list[subprocess.Popen] = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        yield processes
        for process in processes:
            process.wait()
    except BaseException:
        _stop(processes)
        raise
    finally:
        for process in processes:
            if process.stdin:
                process.stdin.close()  # not before: it would be told to stop


def _stop(processes):
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    except BaseException:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        raise


def failures(processes: Sequence[subprocess.Popen]) -> list[str]:
    """Returns a sentence for each process of `started` that ended with an error."""
    lines = []
    for number, process in enumerate(processes, 1):
        status = process.returncode
        if status < 0:
            lines.append(f"worker {number} was ended by {signal.Signals(-status).name}")
        elif status:
            lines.append(f"worker {number} ended with status {status}")
    return lines


def end_with_parent() -> None:
    """Has SIGTERM end this process when the one that started it is gone.

    That one may be killed, and tells nobody then; but its end of the pipe is closed.
    """

    def watch():
        # Not by `sys.stdin`, whose lock Python takes when it ends.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
