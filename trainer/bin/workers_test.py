import os
import signal
import subprocess
import sys
import time

import pytest

from trainer.bin import workers
from trainer.errors import Interrupted

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def python(program):
    return [sys.executable, "-c", program]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_exception(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="interrupted by SIG") as caught:
        with workers.signals_raised():
            os.kill(os.getpid(), number)
            time.sleep(60)
    assert caught.value.signal == number
    assert signal.getsignal(number) is before


def test_an_error_stops_the_others():
    with pytest.raises(OSError, match="mine"):
        with workers.started([SLEEP, SLEEP]) as others:
            raise OSError("mine")
    assert [process.returncode for process in others] == [-signal.SIGTERM] * 2


def test_the_others_are_waited_for_and_their_errors_told():
    programs = ("", "raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)")
    with workers.started([python(program) for program in programs]) as others:
        pass
    assert workers.failures(others) == [
        "worker 2 ended with status 3",
        "worker 3 was ended by SIGKILL",
    ]


_PROGRAM = """
import sys, time
from trainer.bin import workers

worker = [sys.executable, "-c", sys.argv[1]]
with workers.signals_raised(), workers.started([worker, worker]):
    time.sleep(600)
"""
_DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
_WATCHING = "from trainer.bin import workers; workers.end_with_parent()"


def start(preparation):
    """Returns a process whose two workers, which have its output, are up."""
    up = "os.write(1, b'1\\n')"  # in one piece
    worker = f"import os, signal, time; {preparation}; {up}; time.sleep(600)"
    process = subprocess.Popen(
        [*python(_PROGRAM), worker], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for _ in range(2):
        assert process.stdout.readline() == b"1\n"
    return process


def test_a_second_signal_leaves_no_orphans():
    process = start(_DEAF)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)  # until nobody has the pipes
    assert b"Interrupted: interrupted by SIGTERM" in err


def test_workers_of_a_process_that_is_killed_end():
    process = start(_WATCHING)
    process.kill()
    process.communicate(timeout=60)  # until nobody has the pipes
