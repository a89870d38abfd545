"""Loops of torch's own, of one process and of two: the steps are those of `fit`."""

import os

import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring

if keras.backend.backend() != "torch":
    pytest.skip("torch's loops", allow_module_level=True)

import torch

STEPS, ROWS = 4, 16
FORMS = {
    "rank_one": {},
    "momentum": {"beta_1": 0.9},
    "orthogonal": {"orthogonalize": True, "tensor_dims": {"embedding": ("et2", 1)}},
    "algorithm_1": {"preconditioner": "geometric_mean", "beta_2": None},
    "clipping": {"global_clipnorm": 0.1, "weight_decay": 0.01},
}


def compiled(form):
    """Returns a model, its optimizer, ids of its rows and their targets."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,), dtype="int32"),
            keras.layers.Embedding(40, 16),
            keras.layers.Flatten(),
            keras.layers.Dense(24, "tanh"),
            keras.layers.Dense(8),
        ]
    )
    model.compile(ExtremeTensoring(0.01, **FORMS[form]), "mse")
    model.optimizer.build(model.trainable_variables)
    ids = np.random.default_rng(0).integers(0, 40, (STEPS * ROWS, 8), "int32")
    return model, model.optimizer, ids, np.eye(8, dtype="float32")[ids[:, 0] % 8]


def weights_after(form, process=0, processes=1):
    """Returns the weights that a loop over this process' part of the rows gives.

    The loop is that of Keras' guide, "Writing a training loop from scratch in PyTorch".
    """
    model, optimizer, ids, targets = compiled(form)
    module = model
    if processes > 1:
        module = torch.nn.parallel.DistributedDataParallel(model)
    weights = model.trainable_weights
    for step in range(STEPS):
        own = slice(step * ROWS + process, (step + 1) * ROWS, processes)
        model.zero_grad()
        outputs = module(torch.as_tensor(ids[own]))
        torch.mean((outputs - torch.as_tensor(targets[own])) ** 2).backward()
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in weights], weights)
    return model.get_weights()


def work(process, processes, folder):
    """Is one of the processes of a loop, and saves its weights, by form."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=process, world_size=processes
    )
    for form in FORMS:
        weights = weights_after(form, process, processes)
        np.savez(f"{folder}/{form}.{process}", *weights)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("form", FORMS)
def test_the_loop_of_keras_guide_takes_the_steps_of_fit(form):
    model, _, ids, targets = compiled(form)
    model.fit(ids, targets, batch_size=ROWS, shuffle=False, verbose=0)
    for a, b in zip(weights_after(form), model.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_two_processes_of_ddp_take_the_steps_of_one(tmp_path):
    """`DistributedDataParallel` sums gradients before the optimizer clips them."""
    torch.multiprocessing.spawn(work, (2, str(tmp_path)), nprocs=2)
    for form in FORMS:
        files = [np.load(tmp_path / f"{form}.{process}.npz") for process in (0, 1)]
        first, second = ([arrays[name] for name in arrays.files] for arrays in files)
        for a, b, expected in zip(first, second, weights_after(form)):
            np.testing.assert_array_equal(a, b)  # no process drifts from the other
            np.testing.assert_allclose(a, expected, rtol=1e-4, atol=2e-6, err_msg=form)
