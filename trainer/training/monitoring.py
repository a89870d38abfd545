"""Writes for TensorBoard: scalars of a run, and traces of its profiler."""

import itertools
import math
import os
import pathlib
import socket
import time

import keras
from keras import ops

from trainer.errors import UsageError
from trainer.evaluation.evaluation import exp
from trainer.files import errors_named
from trainer.files import write_atomically
from trainer.training.callbacks import Part
from trainer.training.run_state import RunState


class Summaries(Part):
    """Writes scalars every `frequency` steps, and those of every evaluation.

    Writing takes `tensorboard`, not TensorFlow. Where a run goes on from a checkpoint,
    the events that an earlier start wrote of later steps are dropped: the run takes
    these steps again.

    Args:
        state: `RunState`.
        output_dir: folder of the event files.
        flops_per_token: see `flops.per_token`.
        state_bytes: of the optimizer.
        sync_frequency: steps of checkpoints. With these, the events of the steps up to
            them are on the disk: a run that goes on does not write them again.
        frequency: steps.
    """

    def __init__(
        self,
        state: RunState,
        output_dir: str,
        flops_per_token: float,
        state_bytes: int,
        sync_frequency: int,
        frequency: int = 20,
    ):
        super().__init__(state)
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.scalar import summary_v2
        from tensorboard.summary.writer import record_writer

        self._make_event = event_pb2.Event
        self._make_scalar = summary_v2.scalar_pb
        _drop_events_after(state.start_step, output_dir)
        self._path = _new_path(pathlib.Path(output_dir))
        self._file = open(self._path, "xb")
        self._writer = record_writer.RecordWriter(self._file)
        self._add(0, file_version="brain.Event:2")
        self._flops_per_token = flops_per_token
        self._frequency = frequency
        self._sync_frequency = sync_frequency
        # A TensorBoard that is running has read them: it drops them at this event.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(state.start_step + 1, session_log=start)
        self._scalars({"optimizer/state_bytes": state_bytes})

    def _add(self, step, **content):
        event = self._make_event(wall_time=time.time(), step=step, **content)
        with errors_named(self._path):
            self._writer.write(event.SerializeToString())
            self._writer.flush()

    def _scalars(self, values):
        for name, value in values.items():
            self._add(self.state.step, summary=self._make_scalar(name, float(value)))

    def on_train_begin(self, logs=None):
        self._mark = self.state.timed_steps, self.state.seconds

    def on_train_batch_end(self, batch, logs=None):
        state = self.state
        if state.step % self._frequency == 0:
            state.sync()
            self._training(*self._mark)
            self._mark = state.timed_steps, state.seconds
        if state.evaluations and state.evaluations[-1][0] == state.step:
            figures = state.evaluations[-1][1].figures().items()
            self._scalars({f"dev/{name}": value for name, value in figures})
        if state.is_due(self._sync_frequency) or state.stopping:
            os.fsync(self._file.fileno())

    def _training(self, timed_steps, seconds):
        state, optimizer = self.state, self.model.optimizer
        tokens = (state.timed_steps - timed_steps) * state.tokens_per_step
        speed = tokens / ((state.seconds - seconds) or math.inf)
        self._scalars(
            {
                "train/loss": state.loss,
                "train/perplexity_per_token": exp(state.loss),
                "train/learning_rate": optimizer.learning_rate,
                "train/gradient_norm": ops.convert_to_numpy(optimizer.norm),
                "train/tokens_per_second": speed,
                "train/model_flops_per_second": speed * self._flops_per_token,
            }
        )

    def close(self):
        with errors_named(self._path):  # it writes what is left
            self._file.close()


_numbers = itertools.count()


def _new_path(folder):
    """Returns the path of an event file, named as TensorBoard's writers name them."""
    host, number = socket.gethostname(), next(_numbers)
    name = f"{time.time():010.0f}.{host}.{os.getpid()}.{number}"
    return folder / f"events.out.tfevents.{name}{_SUFFIX}"


_SUFFIX = ".et-trainer"  # others may write into the folder, too


def _drop_events_after(step, output_dir):
    """Rewrites the event files of a folder that hold events of later steps.

    At step 0 all go: no step was kept of a start that diverged, say, and this one may
    have another optimizer.
    """
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.summary.writer import record_writer

    for path in pathlib.Path(output_dir).glob(f"events.out.tfevents.*{_SUFFIX}"):
        if step == 0:
            path.unlink()
            continue
        # The end of a file whose writer was killed may be torn: it is left out.
        events = list(event_file_loader.EventFileLoader(str(path)).Load())
        kept = [event for event in events if event.step <= step]
        if len(kept) == len(events):
            continue

        def write(partial, kept=kept):
            with open(partial, "wb") as file:
                writer = record_writer.RecordWriter(file)
                for event in kept:
                    writer.write(event.SerializeToString())

        write_atomically(path, write)


class Profile(Part):
    """Traces steps `first` to `last` for TensorBoard's profiler.

    Raises:
        UsageError: the backend has no profiler.
    """

    def __init__(self, state: RunState, output_dir: str, first: int, last: int):
        super().__init__(state)
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            self._start = tf.profiler.experimental.start
            self._stop = tf.profiler.experimental.stop
        elif backend == "jax":
            import jax

            self._start = jax.profiler.start_trace
            self._stop = jax.profiler.stop_trace
        else:
            raise UsageError(f"profile works on TensorFlow and JAX, not on {backend}")
        self._output_dir = str(output_dir)
        self._first, self._last = first, last
        self._on = False

    def on_train_batch_begin(self, batch, logs=None):
        if self._first <= self.state.step + 1 <= self._last and not self._on:
            self._start(self._output_dir)
            self._on = True

    def on_train_batch_end(self, batch, logs=None):
        if self.state.step >= self._last:
            self.close()

    def close(self):
        if self._on:
            self._stop()
            self._on = False
