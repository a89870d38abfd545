"""Runs of a very small model: they learn, continue exactly, and are evaluated."""

import dataclasses

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from trainer import dataset
from trainer import evaluation
from trainer import optimizers
from trainer import registry
from trainer import run_folder
from trainer import sampling
from trainer import tokenizer
from trainer import training
from trainer.errors import UsageError
from trainer.hparams import HParams

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
    return training.Run(
        PROBLEM, str(data_dir), hparams, steps, output_dir and str(output_dir)
    )


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run")
    return output_dir, training.train(run(data_dir, output_dir, steps=400))


def test_it_learns_more_than_frequencies(trained, data_dir):
    """It beats the best model that ignores context: the dev text's own unigrams."""
    _, result = trained
    source = dataset.RowSource(data_dir, PROBLEM, "dev")
    counts = np.bincount(np.concatenate([source[i][1] for i in range(len(source))]))
    p = counts[1:][counts[1:] > 0] / counts[1:].sum()
    assert result.evaluations[-1][1].nats_per_token < -(p * np.log(p)).sum() - 0.3
    assert "perplexity per word" in str(result)


def test_regularized_run_works(data_dir):
    result = training.train(
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
    source = dataset.RowSource(data_dir, PROBLEM, "dev")
    rows = np.stack([source[i][1] for i in range(len(source))])
    z = result.model.predict_on_batch(rows).astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_p, rows[..., None], -1)[..., 0] * (rows != 0)
    hits = (z.argmax(-1) == rows) & (rows != 0)
    scoring_model = evaluation.scorer(result.model)
    split = dataset.load_description(data_dir, PROBLEM).splits["dev"]
    for batch in (5, len(source)):
        found = evaluation.evaluate(scoring_model, source, batch)
        np.testing.assert_allclose(found.nats, nats.sum(), rtol=1e-5)
        assert found.correct == hits.sum()
        covered = (found.sentences, found.words, found.bytes, found.tokens)
        assert covered == (split.sentences, split.words, split.bytes, split.tokens)
    words = split.words + split.sentences
    np.testing.assert_allclose(
        found.perplexity_per_word, np.exp(nats.sum() / words), rtol=1e-4
    )
    part = evaluation.evaluate(scoring_model, source, 4, max_batches=2)
    assert part.tokens == (rows[:8] != 0).sum()


def test_checkpoint_evaluates_to_the_same_figures(trained, data_dir):
    output_dir, result = trained
    path = run_folder.latest_checkpoint(output_dir)
    assert str(path) == result.checkpoint and path.name == "model-400.keras"
    found = evaluation.evaluate_checkpoint(path, data_dir, PROBLEM, "dev", 512)
    np.testing.assert_allclose(found.nats, result.evaluations[-1][1].nats, rtol=1e-6)


def test_summaries_are_written(trained):
    from tensorboard.backend.event_processing import event_accumulator

    output_dir, result = trained
    events = event_accumulator.EventAccumulator(
        str(output_dir), size_guidance={"tensors": 0}
    )
    events.Reload()
    tags = events.Tags()["tensors"]
    assert {"train/loss", "train/learning_rate", "dev/perplexity_per_word"} <= set(tags)
    assert [e.step for e in events.Tensors("train/loss")] == list(range(20, 401, 20))


def test_sampling_is_seeded_text(trained, data_dir):
    _, result = trained
    processor = tokenizer.load(dataset.Paths(data_dir, PROBLEM).tokenizer)
    first = sampling.sample(result.model, processor, 2, seed=1)
    assert first == sampling.sample(result.model, processor, 2, seed=1)
    assert first != sampling.sample(result.model, processor, 2, seed=2)
    assert len(first) == 2


@pytest.mark.parametrize("optimizer", ["et2", "et2_rank1", "adam"])
def test_a_run_in_two_parts_is_the_run_in_one(data_dir, tmp_path, optimizer):
    whole = training.train(run(data_dir, tmp_path / "whole", optimizer=optimizer))
    training.train(run(data_dir, tmp_path / "parts", 3, optimizer=optimizer))
    keras.backend.clear_session()
    parts = training.train(run(data_dir, tmp_path / "parts", optimizer=optimizer))
    for a, b in zip(whole.model.variables, parts.model.variables):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(a),
            keras.ops.convert_to_numpy(b),
            atol=1e-6,
            err_msg=a.path,
        )


def test_an_output_dir_belongs_to_one_run(trained, data_dir):
    output_dir, _ = trained
    with pytest.raises(UsageError, match="hparams.*choose another --output_dir"):
        training.train(run(data_dir, output_dir, 410, optimizer="adam"))
    with pytest.raises(UsageError, match="is at step 400 already"):
        training.train(run(data_dir, output_dir, 400))


def test_old_checkpoints_go(data_dir, tmp_path):
    training.train(
        dataclasses.replace(
            run(data_dir, tmp_path, steps=5), checkpoint_frequency=1, checkpoints_kept=2
        )
    )
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["model-4.keras", "model-5.keras"]


def test_data_of_another_shape_is_refused(trained, data_dir, tmp_path):
    from trainer import datagen

    output_dir, _ = trained
    problem = registry.problems.get(PROBLEM)
    datagen.generate(problem, data_dir / "text", tmp_path, max_length=16)
    with pytest.raises(UsageError, match="max_length=16.*trained with 32"):
        evaluation.evaluate_checkpoint(
            run_folder.latest_checkpoint(output_dir), tmp_path, PROBLEM, "dev", 512
        )


@pytest.mark.parametrize("name", registry.optimizers.names())
def test_every_optimizer_takes_a_step(name):
    hparams = dataclasses.replace(HPARAMS, optimizer=name, learning_rate_warmup_steps=4)
    optimizer = optimizers.create(hparams)
    assert optimizer.name == name
    variable = keras.Variable(np.ones((4, 6)), dtype="float32")
    optimizer.apply([keras.ops.ones((4, 6))], [variable])
    assert (keras.ops.convert_to_numpy(variable) < 1).all()


def test_unknown_optimizer():
    with pytest.raises(UsageError, match="unknown optimizer 'et9'. Known: adafactor"):
        optimizers.create(dataclasses.replace(HPARAMS, optimizer="et9"))
