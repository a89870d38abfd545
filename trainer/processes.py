"""Joins the processes of a run: who writes, what all know, and how they end together.

A program that never calls `join` is one process. JAX is not imported before there are
several.
"""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from trainer.errors import UsageError

AUTO = "auto"  # a coordinator that JAX learns of by itself: Slurm, Open MPI, TPU pods

# A process that is not heard of for so long is lost, and all others end.
_HEARTBEAT_SECONDS = 30
_WAIT_SECONDS = 300  # for the first process to say something

_process, _processes = 0, 1
_refused = False  # what the first process refused ends them all
_numbers = itertools.count()  # of what processes tell each other; the same in all


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of a run, on JAX.

    Args:
        coordinator: HOST:PORT of the first process, where the others find it; `AUTO`
            where a scheduler says it; None for one process.
        num_processes: of the run.
        process_id: from 0.

    Raises:
        UsageError: they do not fit each other, or the others cannot be reached.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        return
    _check(coordinator, num_processes, process_id)
    import jax

    # Its handler would take SIGTERM before there is a step after which to stop.
    jax.config.update("jax_enable_preemption_service", False)
    automatic = coordinator == AUTO
    try:
        # `keras.distribution.initialize` is this call, without the heartbeat.
        jax.distributed.initialize(
            None if automatic else coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(
            f"--coordinator={coordinator}: the processes of the run do not find each "
            f"other: {str(error).partition(chr(10))[0]}"
        ) from None
    global _process, _processes
    _process, _processes = jax.process_index(), jax.process_count()


def _check(coordinator, num_processes, process_id):
    given = (coordinator, num_processes, process_id)
    if coordinator is None or coordinator != AUTO and None in given:
        raise UsageError(
            "--coordinator=HOST:PORT, --num_processes and --process_id are given "
            f"together; --coordinator={AUTO} is enough where Slurm, Open MPI or a TPU "
            "pod starts the processes"
        )
    port = coordinator.rpartition(":")[2]
    if coordinator != AUTO and not (":" in coordinator and port.isdecimal()):
        raise UsageError(f"--coordinator={coordinator} is not HOST:PORT, or {AUTO}")
    if None not in given and process_id >= num_processes:
        raise UsageError(
            f"--process_id={process_id} must be below --num_processes={num_processes}"
        )


def part() -> tuple[int, int]:
    """Returns (number of this process, number of all); (0, 1) where it is alone."""
    return _process, _processes


def is_first() -> bool:
    """Returns whether this process is the one that writes and reports."""
    return _process == 0


def from_first(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process, and returns its result in all of them.

    Args:
        function: its result is what JSON can hold. A `UsageError` is raised in all
            processes.
    """
    global _refused
    if _processes == 1:
        return function()
    key = f"trainer/said/{next(_numbers)}"
    if is_first():
        try:
            value = function()
        except UsageError as error:
            _client().key_value_set(key, json.dumps({"error": str(error)}))
            _refused = True
            raise
        _client().key_value_set(key, json.dumps({"value": value}))
        return value
    with lost_processes_named():
        text = _client().blocking_key_value_get(key, 1000 * _WAIT_SECONDS)
    said = json.loads(text)
    if "error" in said:
        _refused = True
        raise UsageError(said["error"])
    return said["value"]


def total(values: Any) -> Any:
    """Returns the sum over processes of an array of float64, alike in all of them."""
    if _processes == 1:
        return values
    import numpy as np
    from jax.experimental import multihost_utils

    # Bits, because JAX would make float32 of float64.
    bits = np.ascontiguousarray(values, "float64").view("uint32")
    everyone = np.asarray(multihost_utils.process_allgather(bits))
    return everyone.view("float64").sum(axis=0)


class Stop:
    """Has all processes stop after one and the same step.

    Args:
        lag: steps that a process may be ahead of what it knows of the others.
    """

    def __init__(self, lag: int):
        self._lag = lag
        self._key = f"trainer/stop/{next(_numbers)}"
        self._alone: tuple[int, str] | None = None

    def call(self, step: int, reason: str) -> None:
        """Says that the run is to stop, at the end of a step of this process.

        Others may have begun the steps that follow. None ends the step that is named
        before this process, which has told them, has begun the step before it.
        """
        if _processes == 1:
            self._alone = step, reason
            return
        from jax.errors import JaxRuntimeError

        # Another process may have been the first to say so: its word counts.
        with contextlib.suppress(JaxRuntimeError):
            _client().key_value_set(self._key, f"{step + self._lag + 1} {reason}")

    def called(self, step: int) -> str | None:
        """Returns the reason to stop after a step, or None."""
        found = self._alone if _processes == 1 else self._said()
        return found[1] if found and step >= found[0] else None

    def _said(self):
        from jax.errors import JaxRuntimeError

        try:
            step, reason = _client().key_value_try_get(self._key).split()
        except JaxRuntimeError:  # nobody has
            return None
        return int(step), reason


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
    """Ends a block that failed because another process did with one line."""
    if _processes == 1:
        yield
        return
    from jax.errors import JaxRuntimeError

    try:
        yield
    except JaxRuntimeError as error:
        raise UsageError(
            f"process {_process} of {_processes} has lost another one, whose own "
            "output may say why. The same command, on as many processes as there are, "
            f"goes on from the last checkpoint ({str(error).partition(chr(10))[0]})"
        ) from None


def leave(status: int) -> None:
    """Ends the part that this process has in a run, with the status of its program.

    Where it failed, the others are not waited for: they wait for it.
    """
    if _processes == 1:
        return
    if status == 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if _refused:
            _leave_after_the_others()
        os._exit(status)
    import jax

    jax.distributed.shutdown()


def _leave_after_the_others():
    """Waits in the first process until the others have said why they end.

    With the first one goes what connects them: JAX aborts who is left.
    """
    from jax.errors import JaxRuntimeError

    with contextlib.suppress(JaxRuntimeError):
        if not is_first():
            _client().key_value_set(f"trainer/left/{_process}", "gone")
            return
        for other in range(1, _processes):
            _client().blocking_key_value_get(f"trainer/left/{other}", 10_000)


def _client():
    # What Orbax, too, talks through; JAX has no other name for it.
    from jax._src import distributed

    return distributed.global_state.client
