"""A loss is read when its step is done, and not later than it is needed."""

import math
import types

import pytest

from trainer.training.run_state import RunState


def after(losses, lag, train_steps=100, nonfinite_steps=2):
    """Returns the state of a run that has had steps of these losses."""
    state = RunState(0, train_steps, 96, nonfinite_steps, lag)
    state.set_model(types.SimpleNamespace(stop_training=False))
    for batch, loss in enumerate(losses):
        state.on_train_batch_begin(batch)
        state.on_train_batch_end(batch, {"loss": loss})
        if state.stopping:
            break
    return state


@pytest.mark.parametrize("lag, loss, step", [(0, 3.0, 3), (1, 4.0, 2)])
def test_the_loss_of_a_step_is_read_so_many_steps_later(lag, loss, step):
    state = after([5.0, 4.0, 3.0], lag)
    assert (state.step, state.loss, state.loss_step) == (3, loss, step)


def test_the_last_loss_is_read_at_once():
    state = after([5.0, 4.0, 3.0], lag=1, train_steps=3)
    assert (state.loss, state.loss_step) == (3.0, 3)


def test_sync_reads_what_is_left(monkeypatch):
    state = after([5.0, 4.0, 3.0], lag=1)
    monkeypatch.setattr("keras.backend.backend", lambda: "tensorflow")
    state.sync()
    assert (state.loss, state.loss_step) == (3.0, 3)


@pytest.mark.parametrize("lag", [0, 1])
def test_seconds_are_those_of_the_steps_that_are_timed(monkeypatch, lag):
    """A step takes 10 s on the device, and is waited for where its loss is read."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("keras.backend.backend", lambda: "tensorflow")

    class Loss:
        def __float__(self):
            now[0] += 10.0
            return 1.0

    for sync_after in (None, 2, 4):
        state = RunState(0, 4, 96, 2, lag)
        state.set_model(types.SimpleNamespace(stop_training=False))
        for batch in range(4):
            state.on_train_batch_begin(batch)
            state.on_train_batch_end(batch, {"loss": Loss()})
            if state.step == sync_after:
                state.sync()
            now[0] += 100.0  # an evaluation
        assert (state.timed_steps, state.seconds) == (3, 30.0)


@pytest.mark.parametrize("lag, ended", [(0, 4), (1, 5)])
def test_losses_that_are_not_finite_end_a_run(lag, ended):
    state = after([5.0, 4.0, *[math.nan] * 6], lag)
    assert (state.step, state.diverged_at) == (ended, 3)


def test_a_finite_loss_is_a_recovery():
    assert after([5.0, math.inf, 4.0], lag=0).diverged_at is None
