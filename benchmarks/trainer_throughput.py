r"""Measures tokens per second of training, beside a GPT-2 by other libraries.

    python -m benchmarks.trainer_throughput [--hparams_set=transformer_small] \
        [--batch_size=2048] [--vocab_size=8192] [--rounds=3] [--steps=20] \
        [--torch_python=PYTHON] [--jax_python=PYTHON]

Each contestant trains in a process of its own, float32, no dropout, rows of 256
tokens; they take turns. A figure is the fastest turn, wall-clock time over the steps
after those that compile. Ours is `loop.train` itself, on packed rows from disk, with
the optimizer of the hparams set where no other is named.
PYTHON is an interpreter with torch and transformers, or with jax, flax and optax; a
contestant whose libraries are missing is left out, and the table says so.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from absl import flags

from trainer import progress
from trainer.bin import cli
from trainer.errors import UsageError
from trainer.errors import unknown

_HPARAMS_SET = flags.DEFINE_string("hparams_set", "transformer_small", "Model.")
_TOKENS = cli.DEFINE_count("batch_size", 2048, "Tokens of a step.", least=256)
_VOCAB = cli.DEFINE_count("vocab_size", 8192, "Tokens of the vocabulary.")
_ROUNDS = cli.DEFINE_count("rounds", 3, "Turns of each contestant.")
_STEPS = cli.DEFINE_count("steps", 20, "Timed steps of a turn.")
_TORCH_PYTHON = cli.DEFINE_path("torch_python", sys.executable, "Interpreter.")
_JAX_PYTHON = cli.DEFINE_path("jax_python", sys.executable, "Interpreter.")
_CONTESTANTS = flags.DEFINE_list("contestants", None, "Some of them. Default: all.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "mixed_bfloat16"],
    "Internal, of a worker: of Hugging Face's model.",
)
_WAIT = flags.DEFINE_bool("wait", False, "Internal: wait for a turn before timing.")
_WORKER = flags.DEFINE_string("worker", None, "Internal: the contestant to run.")
_LENGTH = 256
_WARMUP = 4
# Batches of the input pipeline alone: before and while they are timed.
_DRAINED, _DRAWN = 32, 500


def main(argv):
    cli.no_arguments(argv)
    if _TOKENS.value % _LENGTH:
        raise UsageError(
            f"--batch_size={_TOKENS.value} holds no whole rows of {_LENGTH}"
        )
    if _WORKER.value:
        print(json.dumps(CONTESTANTS[_WORKER.value][0]()))
        return
    cli.refuse((_DTYPE,), "without --worker: the contestants train in float32")
    from benchmarks.measure import environment

    figures = {name: [] for name in _CONTESTANTS.value or CONTESTANTS}
    for name in figures:
        if name not in CONTESTANTS:
            raise unknown("contestant", name, CONTESTANTS)
    reasons = {}
    for name in progress.over(list(figures) * _ROUNDS.value, unit="turn"):
        outcome = _turn(name)
        if isinstance(outcome, str):
            reasons[name] = outcome
        else:
            figures[name].append(outcome)
    print(
        f"{_HPARAMS_SET.value}, {_TOKENS.value} tokens a step, {_VOCAB.value} tokens "
        f"of vocabulary, {environment()}\n"
    )
    print("| contestant | versions | tokens/s | / ours |\n|---|---|---|---|")
    best = {
        n: max(f["tokens_per_second"] for f in fs) for n, fs in figures.items() if fs
    }
    for name, speed in best.items():
        ratio = f"{speed / best['ours']:.2f}" if "ours" in best else ""
        print(f"| {name} | {figures[name][0]['versions']} | {speed:,.0f} | {ratio} |")
    for name, reason in reasons.items():
        print(f"| {name} | not run: {reason} | | |")


def _turn(name):
    """Returns the figures of one turn, or the reason why there are none."""
    _, backend, python = CONTESTANTS[name]
    command = [
        sys.executable if python is None else python.value,
        *("-m", "benchmarks.trainer_throughput", f"--worker={name}"),
        *(f"--{f.name}={f.value}" for f in (_HPARAMS_SET, _TOKENS, _VOCAB, _STEPS)),
    ]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def _hparams():
    from trainer import registry
    from trainer.experiments.language_modeling import NO_REGULARIZATION

    hparams = registry.hparams_sets.get(_HPARAMS_SET.value)()
    return hparams.override(f"{NO_REGULARIZATION}batch_size={_TOKENS.value}")


def _random_rows(count):
    """Returns random rows; a sentence has 25 tokens on average, as in GBW."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = rng.integers(2, _VOCAB.value, (count, _LENGTH), "int32")
    rows[rng.random(rows.shape) < 1 / 25] = 1
    return rows


def _timed_steps(step, wait=lambda: None):
    """Returns the tokens per second of a function that takes a step.

    Args:
        step: the function. It reads the loss of the step before, as ours does.
        wait: function that waits until the last step is done.
    """
    for _ in range(_WARMUP):
        step()
    wait()
    if _WAIT.value:
        from benchmarks.measure import wait_for_turn

        wait_for_turn()
    start = time.perf_counter()
    for _ in range(_STEPS.value):
        step()
    wait()
    return _STEPS.value * _TOKENS.value / (time.perf_counter() - start)


def _ours(hparams="", xla_compile="auto"):
    import keras

    from trainer.training import loop
    from trainer.training.run import Run

    class Stopwatch(keras.callbacks.Callback):
        ends = []

        def on_train_batch_end(self, batch, logs=None):
            self.ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as data_dir:
        _write_data(data_dir)
        run = Run(
            problem=_PROBLEM,
            data_dir=data_dir,
            hparams=_hparams().override(hparams),
            xla_compile=xla_compile,
            train_steps=_WARMUP + _STEPS.value,
            local_eval_frequency=10**9,
            eval_steps=1,
        )
        loop.train(run, extra_callbacks=[Stopwatch()])
    ends = Stopwatch.ends[_WARMUP - 1 :]
    # The evaluation after the last step is not in: callbacks of a run come later.
    seconds = ends[-1] - ends[0]
    backend = keras.backend.backend()
    return _figures(_STEPS.value * _TOKENS.value / seconds, "keras", backend)


_PROBLEM = "languagemodel_lm1b8k_packed"


def _write_data(data_dir):
    """Writes random rows as a data set that et-datagen could have written."""
    import dataclasses
    import pathlib

    from array_record.python import array_record_module

    from trainer.data import dataset

    paths = dataset.Paths(data_dir, _PROBLEM)
    rows = _random_rows(256)
    for split in ("train", "dev"):
        writer = array_record_module.ArrayRecordWriter(
            str(paths.rows(split, _LENGTH)), "group_size:1"
        )
        for row in rows:
            writer.write(dataset.encode_row(row, 0, 0, _LENGTH))
        writer.close()
    counts = dataset.Split(rows={_LENGTH: len(rows)}, tokens=rows.size)
    description = dataset.Description(
        _PROBLEM, _VOCAB.value, _LENGTH, True, "", {"train": counts, "dev": counts}
    )
    pathlib.Path(paths.description).write_text(
        json.dumps(dataclasses.asdict(description))
    )


def _input_pipeline():
    """Draws batches and drops them: the cost of reading, shuffling and batching."""
    from trainer.data import batches
    from trainer.data import dataset

    with tempfile.TemporaryDirectory() as data_dir:
        _write_data(data_dir)
        description = dataset.load_description(data_dir, _PROBLEM)
        train = batches.buckets(data_dir, description, "train")
        batches = batches.training_batches(train, _TOKENS.value, seed=0)
        for _ in range(_DRAINED):  # more than are made ahead
            next(batches)
        start = time.perf_counter()
        for _ in range(_DRAWN):
            next(batches)
        seconds = time.perf_counter() - start
        return _figures(_DRAWN * _TOKENS.value / seconds, "grain")


def _hugging_face(compiled):
    import torch
    import transformers

    hparams = _hparams()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX has it
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=_VOCAB.value,
            n_positions=_LENGTH,
            n_embd=hparams.hidden_size,
            n_layer=hparams.num_hidden_layers,
            n_head=hparams.num_heads,
            n_inner=hparams.filter_size,
            activation_function="relu",  # as ours
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    )
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    forward = torch.compile(model) if compiled else model
    rows = torch.from_numpy(_random_rows(_TOKENS.value // _LENGTH)).long().to(device)
    mixed = torch.autocast(
        device, torch.bfloat16, enabled=_DTYPE.value == "mixed_bfloat16"
    )

    before = torch.zeros(())

    def step():
        nonlocal before
        with mixed:
            loss = forward(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        before.item()
        before = loss.detach()

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    figures = _figures(_timed_steps(step, wait), "torch", "transformers")
    if device == "cuda":
        figures["device_peak_bytes"] = torch.cuda.max_memory_allocated()
    return figures


def _flax():
    import flax.linen as nn
    import jax
    import optax

    hparams = _hparams()
    size = hparams.hidden_size

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            attention = nn.MultiHeadDotProductAttention(
                hparams.num_heads, use_bias=False, deterministic=True
            )
            y = nn.LayerNorm()(x)
            x = x + attention(y, y, mask=mask)
            y = nn.relu(nn.Dense(hparams.filter_size)(nn.LayerNorm()(x)))
            return x + nn.Dense(size)(y)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, rows):
            embed = nn.Embed(_VOCAB.value, size)
            places = self.param("places", nn.initializers.normal(), (_LENGTH, size))
            x = embed(rows) + places
            mask = nn.make_causal_mask(rows)
            for _ in range(hparams.num_hidden_layers):
                x = Block()(x, mask)
            return embed.attend(nn.LayerNorm()(x))

    model = Model()
    rows = _random_rows(_TOKENS.value // _LENGTH)
    parameters = jax.jit(model.init)(jax.random.key(0), rows)
    optimizer = optax.adam(1e-4)

    def update(parameters, state):
        def loss_of(parameters):
            logits = model.apply(parameters, rows)[:, :-1]
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
            return nats.mean()

        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(parameters, updates), state, loss

    update = jax.jit(update, donate_argnums=(0, 1))
    state = optimizer.init(parameters)
    before = 0.0

    def step():
        nonlocal parameters, state, before
        parameters, state, loss = update(parameters, state)
        float(before)
        before = loss

    def wait():
        jax.block_until_ready(parameters)

    return _figures(_timed_steps(step, wait), "jax", "flax", "optax")


def _figures(tokens_per_second, *libraries):
    import importlib.metadata

    # TensorFlow has more than one distribution.
    of_module = importlib.metadata.packages_distributions()
    versions = [f"{n} {importlib.metadata.version(of_module[n][0])}" for n in libraries]
    return {"tokens_per_second": tokens_per_second, "versions": ", ".join(versions)}


# Name: what it runs, its Keras backend, the interpreter's flag.
CONTESTANTS = {
    "ours": (_ours, "tensorflow", None),
    "ours_xla": (lambda: _ours(xla_compile="true"), "tensorflow", None),
    "ours_et2": (lambda: _ours("optimizer=et2"), "tensorflow", None),
    "ours_adam": (lambda: _ours("optimizer=adam"), "tensorflow", None),
    "input_pipeline": (_input_pipeline, "tensorflow", None),
    "ours_on_jax": (_ours, "jax", _JAX_PYTHON),
    "hugging_face": (lambda: _hugging_face(False), "torch", _TORCH_PYTHON),
    "hugging_face_compiled": (lambda: _hugging_face(True), "torch", _TORCH_PYTHON),
    "flax_optax": (_flax, "jax", _JAX_PYTHON),
}

run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
