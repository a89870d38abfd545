"""Long runs and many requests: memory, threads and open files do not grow.

A process needs some time until it has all that it keeps; what counts is what comes
after that.
"""

import concurrent.futures
import dataclasses

import keras
import numpy as np
import psutil
import pytest

from trainer.training import loop
from trainer.training.loop_test import run

pytestmark = pytest.mark.faults

NOISE = 16e6  # bytes of resident memory, of some hundreds


class Samples:
    """Holds (resident bytes, threads, open files) of a process, over its life."""

    def __init__(self, pid=None):
        self._process = psutil.Process(pid)
        self.taken = []

    def take(self):
        with self._process.oneshot():
            memory = self._process.memory_info().rss
            self.taken.append(
                (memory, self._process.num_threads(), self._process.num_fds())
            )

    def check(self):
        """The last quarter is like the second one."""
        samples = np.array(self.taken)
        quarter = len(samples) // 4
        early, late = samples[quarter : 2 * quarter], samples[-quarter:]
        print(f"bytes, threads, files: {early.mean(0)} early, {late.mean(0)} late")
        growth = np.median(late[:, 0]) - np.median(early[:, 0])
        assert growth < NOISE, self.taken
        assert late[:, 1].max() <= early[:, 1].max(), self.taken
        assert late[:, 2].max() <= early[:, 2].max(), self.taken


def test_a_long_run(data_dir, tmp_path):
    """5,000 steps, 100 evaluations, 100 checkpoints."""
    samples = Samples()

    class Sampling(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch % 50 == 49:
                samples.take()

    settings = dataclasses.replace(
        run(data_dir, tmp_path, 5000),
        local_eval_frequency=50,
        save_checkpoints_steps=50,
        eval_steps=1,
    )
    loop.train(settings, extra_callbacks=[Sampling()])
    assert len(samples.taken) == 100
    samples.check()


def test_many_requests(saved_model, tmp_path):
    """10,000 requests to the example server, a tenth of them bad."""
    pytest.importorskip("fastapi")
    from examples.serve_test import post
    from examples.serve_test import server

    good = "/score", {"texts": ["ti bo bo ."]}, 200
    bad = [
        ("/score", {"texts": []}, 422),
        ("/score", b"{", 422),
        ("/generate", {"prompts": ["ti " * 2000]}, 422),
        ("/generate", b" " * 2_000_000, 413),
        ("/nowhere", {}, 404),
    ]
    with server(saved_model, tmp_path / "log") as (port, process):
        samples = Samples(process.pid)

        def ask(number):
            path, body, expected = good if number % 10 else bad[number // 10 % len(bad)]
            status, _ = post(port, path, body)
            assert status == expected

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for first in range(0, 10_000, 250):
                list(pool.map(ask, range(first, first + 250)))
                samples.take()
    samples.check()
