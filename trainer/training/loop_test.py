"""Runs of a very small model: they learn, continue exactly, and are evaluated."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from trainer import registry
from trainer.data import batches
from trainer.data import dataset
from trainer.errors import UsageError
from trainer.evaluation import evaluation
from trainer.hparams import HParams
from trainer.models import language_model
from trainer.optim import catalog
from trainer.runs import checkpoints
from trainer.runs import trained_model
from trainer.training import building
from trainer.training import loop
from trainer.training.run import Run

HPARAMS = HParams(
    num_hidden_layers=1,
    hidden_size=32,
    filter_size=64,
    num_heads=2,
    batch_size=512,
    learning_rate_warmup_steps=100,
    layer_prepostprocess_dropout=0.0,
    attention_dropout=0.0,
    relu_dropout=0.0,
    label_smoothing=0.0,
)


def run(data_dir, output_dir=None, steps=8, **kwargs):
    hparams = dataclasses.replace(HPARAMS, **kwargs)
    return Run(PROBLEM, str(data_dir), hparams, steps, output_dir and str(output_dir))


def split_of(data_dir, split):
    description = dataset.load_description(data_dir, PROBLEM)
    return batches.buckets(data_dir, description, split)


def evaluate(path, data_dir, tokens=512):
    """The evaluation of a checkpoint in the folder of its run."""
    loaded = trained_model.load(pathlib.Path(path).parent.parent, path)
    description = loaded.check_data(data_dir)
    return evaluation.evaluate_model(loaded.model, data_dir, description, "dev", tokens)


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run")
    return output_dir, loop.train(run(data_dir, output_dir, steps=400))


def test_it_learns_more_than_frequencies(trained, data_dir):
    """It beats the best model that ignores context: the dev text's own unigrams."""
    _, result = trained
    (source,) = split_of(data_dir, "dev")
    counts = np.bincount(np.concatenate([source[i][1] for i in range(len(source))]))
    p = counts[1:][counts[1:] > 0] / counts[1:].sum()
    assert result.evaluations[-1][1].nats_per_token < -(p * np.log(p)).sum() - 0.3
    assert "perplexity per word" in str(result)


def test_regularized_run_works(data_dir):
    result = loop.train(
        run(
            data_dir,
            steps=2,
            attention_dropout=0.1,
            relu_dropout=0.1,
            layer_prepostprocess_dropout=0.1,
            label_smoothing=0.1,
            weight_decay=0.01,
            clip_grad_norm=1.0,
        )
    )
    assert np.isfinite(result.train_loss)


def test_evaluation_is_the_sum_over_tokens(trained, data_dir):
    """Against softmax in float64, for every batch size, over every row."""
    _, result = trained
    (source,) = split_of(data_dir, "dev")
    rows = np.stack([source[i][1] for i in range(len(source))])
    z = result.model.predict_on_batch(rows).astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_p, rows[..., None], -1)[..., 0] * (rows != 0)
    hits = (z.argmax(-1) == rows) & (rows != 0)
    split = dataset.load_description(data_dir, PROBLEM).splits["dev"]
    for batch in (5, len(source)):
        tokens = batch * rows.shape[1]
        scoring_model = language_model.scoring_model(result.model, tokens)
        found = evaluation.evaluate(scoring_model, [source], tokens)
        np.testing.assert_allclose(found.nats, nats.sum(), rtol=1e-5)
        assert found.correct == hits.sum()
        covered = (found.sentences, found.words, found.bytes, found.tokens)
        assert covered == (split.sentences, split.words, split.bytes, split.tokens)
    words = split.words + split.sentences
    np.testing.assert_allclose(
        found.perplexity_per_word, np.exp(nats.sum() / words), rtol=1e-4
    )
    part = evaluation.evaluate(scoring_model, [source], tokens, max_batches=1)
    assert part.tokens == (rows != 0).sum()


def test_checkpoint_evaluates_to_the_same_figures(trained, data_dir):
    output_dir, result = trained
    path = checkpoints.latest(output_dir)
    assert str(path) == result.checkpoint and path.name == "model-400.keras"
    found = evaluate(path, data_dir)
    np.testing.assert_allclose(found.nats, result.evaluations[-1][1].nats, rtol=1e-6)


def test_summaries_are_written(trained):
    from tensorboard.backend.event_processing import event_accumulator

    output_dir, result = trained
    events = event_accumulator.EventAccumulator(
        str(output_dir), size_guidance={"tensors": 0}
    )
    events.Reload()
    tags = events.Tags()["tensors"]
    assert {
        "train/loss",
        "train/perplexity_per_token",
        "train/learning_rate",
        "train/gradient_norm",
        "train/tokens_per_second",
        "train/model_flops_per_second",
        "optimizer/state_bytes",
        "dev/perplexity_per_word",
    } <= set(tags)
    (state,) = events.Tensors("optimizer/state_bytes")
    assert state.tensor_proto.float_val[0] == 4 * result.state_scalars
    assert all(
        e.tensor_proto.float_val[0] > 0 for e in events.Tensors("train/gradient_norm")
    )
    assert [e.step for e in events.Tensors("train/loss")] == list(range(20, 401, 20))


def test_steps_are_profiled(data_dir, tmp_path):
    """A trace for TensorBoard's profiler; the run goes on after it."""
    profiled = dataclasses.replace(run(data_dir, tmp_path, 6), profile=(3, 4))
    assert loop.train(profiled).steps == 6
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize("optimizer", ["et2", "et2_rank1", "adam"])
def test_a_run_in_two_parts_is_the_run_in_one(data_dir, tmp_path, optimizer):
    whole = loop.train(run(data_dir, tmp_path / "whole", optimizer=optimizer))
    loop.train(run(data_dir, tmp_path / "parts", 3, optimizer=optimizer))
    keras.backend.clear_session()
    parts = loop.train(run(data_dir, tmp_path / "parts", optimizer=optimizer))
    for a, b in zip(whole.model.variables, parts.model.variables):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(a),
            keras.ops.convert_to_numpy(b),
            atol=1e-6,
            err_msg=a.path,
        )


def test_an_output_dir_belongs_to_one_run(trained, data_dir):
    output_dir, _ = trained
    with pytest.raises(UsageError, match="hparams.*choose another output_dir"):
        loop.train(run(data_dir, output_dir, 410, optimizer="adam"))
    with pytest.raises(UsageError, match="is at step 400 already"):
        loop.train(run(data_dir, output_dir, 400))


def test_old_checkpoints_go(data_dir, tmp_path):
    loop.train(
        dataclasses.replace(
            run(data_dir, tmp_path, steps=5), checkpoint_frequency=1, checkpoints_kept=2
        )
    )
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("model-*"))
    assert names == ["model-4.keras", "model-5.keras"]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_and_continues(data_dir, tmp_path, dtype):
    if (dtype, keras.backend.backend()) == ("mixed_float16", "jax"):
        pytest.skip("JAX has no float16 products on the CPU")
    first = dataclasses.replace(run(data_dir, tmp_path, steps=30), dtype=dtype)
    result = loop.train(first)
    assert result.state_scalars < 1000
    again = loop.train(dataclasses.replace(first, train_steps=60))
    assert again.evaluations[-1][1].nats < result.evaluations[-1][1].nats
    assert {v.dtype for v in again.model.trainable_variables} == {"float32"}
    with pytest.raises(UsageError, match="dtype='mixed_.*this one has dtype='float32'"):
        loop.train(run(data_dir, tmp_path, steps=61))


def test_accumulated_batches_are_one_large_batch(data_dir):
    """Two steps of half the rows, averaged, are a step of all."""
    (source,) = split_of(data_dir, "train")
    rows = np.stack([source[i][1] for i in range(8)])
    weights = np.ones(rows.shape, "float32")  # as many tokens in each half
    values = []
    for accumulated, batch in ((1, 8), (2, 4)):
        # SGD: AdaGrad's first step would blow up the rounding of small gradients.
        hparams = dataclasses.replace(
            HPARAMS,
            gradient_accumulation_steps=accumulated,
            optimizer="sgd",
            learning_rate_schedule="constant",
            learning_rate_constant=0.5,
        )
        model = building.build(
            dataclasses.replace(run(data_dir), hparams=hparams),
            dataset.load_description(data_dir, PROBLEM),
        )
        model.fit(rows, rows, batch, sample_weight=weights, shuffle=False, verbose=0)
        values.append(model.get_weights())
    for a, b in zip(*values):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_averaged_weights_are_evaluated_and_the_run_goes_on(data_dir, tmp_path):
    """The checkpoint holds both: raw weights to go on from, averages to use."""
    whole = loop.train(run(data_dir, tmp_path / "whole", 6, ema_momentum=0.9))
    loop.train(run(data_dir, tmp_path / "parts", 3, ema_momentum=0.9))
    parts = loop.train(run(data_dir, tmp_path / "parts", 6, ema_momentum=0.9))
    for a, b in zip(whole.model.get_weights(), parts.model.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)
    found = evaluate(whole.checkpoint, data_dir)
    np.testing.assert_allclose(found.nats, whole.evaluations[-1][1].nats, rtol=1e-6)


def test_the_best_model_is_kept_and_ends_the_run(data_dir, tmp_path):
    """At an absurd rate the first evaluation stays the best."""
    wild = run(data_dir, tmp_path, 400, learning_rate_constant=3000.0)
    result = loop.train(dataclasses.replace(wild, eval_frequency=2, patience=3))
    nats = [e.nats_per_token for _, e in result.evaluations]
    assert result.steps < 400
    assert len(nats) >= 4 and all(not x < min(nats[:-3]) for x in nats[-3:])
    step, best = checkpoints.best(tmp_path)
    assert best == min(nats) and step == result.evaluations[nats.index(best)][0]
    path = tmp_path / "checkpoints" / "best.keras"
    found = evaluate(path, data_dir)
    np.testing.assert_allclose(found.nats_per_token, best, rtol=1e-6)


def test_warm_start(trained, data_dir, tmp_path):
    output_dir, result = trained
    path = str(checkpoints.latest(output_dir))
    # A rate of almost 0: what is evaluated is what the run started from.
    cold = run(data_dir, tmp_path, 1, optimizer="sgd", learning_rate_constant=1e-9)
    warm = loop.train(dataclasses.replace(cold, warm_start_from=path))
    nats = result.evaluations[-1][1].nats
    np.testing.assert_allclose(warm.evaluations[-1][1].nats, nats, rtol=1e-5)
    wider = dataclasses.replace(cold.hparams, filter_size=128)
    other = dataclasses.replace(
        cold, warm_start_from=path, hparams=wider, output_dir=str(tmp_path / "other")
    )
    with pytest.raises(UsageError, match=r"has shape \(.*64.* there and \(.*128"):
        loop.train(other)


def test_a_damaged_checkpoint_is_passed_over(data_dir, tmp_path, capfd):
    frequent = dataclasses.replace(run(data_dir, tmp_path, 4), checkpoint_frequency=2)
    loop.train(frequent)
    newest = checkpoints.latest(tmp_path)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert checkpoints.latest(tmp_path).name == "model-2.keras"
    assert "model-4.keras is damaged" in capfd.readouterr().err
    assert loop.train(frequent).steps == 4


def test_checkpoints_average(data_dir, tmp_path):
    import subprocess
    import sys

    loop.train(
        dataclasses.replace(run(data_dir, tmp_path, steps=4), checkpoint_frequency=2)
    )
    command = [sys.executable, "-m", "trainer.bin.et_avg", f"--output_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "holds 2 checkpoints, not 5" in done.stderr
    subprocess.run([*command, "--num_last_checkpoints=2"], check=True)
    two, four, average = (
        checkpoints.load(tmp_path / "checkpoints" / f"{name}.keras")
        for name in ("model-2", "model-4", "average")
    )
    for a, b, c in zip(two.weights, four.weights, average.weights):
        if "float" in a.dtype:
            mean = (np.asarray(a, "f8") + np.asarray(b, "f8")) / 2
            np.testing.assert_allclose(np.asarray(c), mean, atol=1e-7)


@pytest.mark.parametrize("schedule", registry.schedules.names())
def test_every_schedule_trains(data_dir, schedule):
    result = loop.train(
        run(data_dir, steps=2, learning_rate_schedule=schedule, optimizer="et2_rank1")
    )
    assert np.isfinite(result.train_loss)


def test_data_of_another_shape_is_refused(trained, data_dir, tmp_path):
    from trainer.data import datagen

    output_dir, _ = trained
    problem = registry.problems.get(PROBLEM)
    datagen.generate(problem, data_dir / "text", tmp_path, max_length=16)
    with pytest.raises(UsageError, match="rows of 16.*trained on rows of 32"):
        trained_model.load(output_dir).check_data(tmp_path)


def test_rows_of_many_lengths(data_dir, tmp_path):
    """The unpacked form learns, goes on where it was, and evaluates every sentence."""
    from trainer.data import datagen

    problem = registry.problems.get("languagemodel_lm1b2k")
    datagen.generate(problem, data_dir / "text", tmp_path / "data", max_length=48)
    first = dataclasses.replace(
        run(tmp_path / "data", tmp_path / "run", steps=40), problem=problem.name
    )
    result = loop.train(first)
    again = loop.train(dataclasses.replace(first, train_steps=80))
    nats = [r.evaluations[-1][1].nats for r in (result, again)]
    assert nats[1] < nats[0]
    found = evaluate(again.checkpoint, tmp_path / "data", 96)
    assert found.sentences == 200
    np.testing.assert_allclose(found.nats, nats[1], rtol=1e-5)


@pytest.mark.parametrize("name", registry.optimizers.names())
def test_every_optimizer_takes_a_step(name):
    hparams = dataclasses.replace(HPARAMS, optimizer=name, learning_rate_warmup_steps=4)
    optimizer = catalog.create(hparams, [])
    assert optimizer.name == name
    optimizer.jit_compile = False  # one step is not worth compiling
    variable = keras.Variable(np.ones((4, 6)), dtype="float32", name="embedding")
    optimizer.apply([keras.ops.ones((4, 6))], [variable])
    assert (keras.ops.convert_to_numpy(variable) < 1).all()


def test_budget_of_state():
    """A budget binds, is refused to others, and must cover a scalar a variable."""
    hparams = dataclasses.replace(
        HPARAMS, optimizer="et2_rank1", optimizer_state_budget=100.0
    )
    variables = [keras.Variable(np.ones((40, 60)), dtype="float32", name="kernel")]
    optimizer = catalog.create(hparams, variables)
    optimizer.build(variables)
    assert 10 < optimizer.state_size <= 25
    assert optimizer.beta_2 == 0.99
    with pytest.raises(UsageError, match="is for ET optimizers"):
        catalog.create(dataclasses.replace(hparams, optimizer="adam"), variables)
    with pytest.raises(UsageError, match="less than one scalar"):
        small = dataclasses.replace(hparams, optimizer_state_budget=3.0)
        catalog.create(small, variables)


def test_unknown_optimizer():
    with pytest.raises(UsageError, match="unknown optimizer 'et9'. Known: adafactor"):
        catalog.create(dataclasses.replace(HPARAMS, optimizer="et9"), [])
