"""Runs of a very small model: they learn, continue exactly, and are evaluated."""

import dataclasses
import json
import pathlib
import shutil
import signal

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
from trainer.runs import checkpoints
from trainer.runs import trained_model
from trainer.training import building
from trainer.training import check
from trainer.training import loop
from trainer.training.run import Run

HPARAMS = HParams(
    num_hidden_layers=1,
    hidden_size=32,
    filter_size=64,
    num_heads=2,
    batch_size=512,
    optimizer="adam",  # compiled soon; tests of our optimizer name it
    learning_rate_warmup_steps=100,
    layer_prepostprocess_dropout=0.0,
    attention_dropout=0.0,
    relu_dropout=0.0,
    label_smoothing=0.0,
)


OURS = "et2_rank1_short"


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
    return output_dir, loop.train(run(data_dir, output_dir, steps=400, optimizer=OURS))


def test_it_learns_more_than_frequencies(trained, data_dir):
    """It beats the best model that ignores context: the dev text's own unigrams."""
    _, result = trained
    (source,) = split_of(data_dir, "dev")
    _, ids = source.rows(range(len(source)))
    counts = np.bincount(ids.ravel())
    p = counts[1:][counts[1:] > 0] / counts[1:].sum()
    assert result.evaluations[-1][1].nats_per_token < -(p * np.log(p)).sum() - 0.3
    assert "perplexity per word" in str(result)


def test_nothing_tunes_the_stream_of_batches(data_dir):
    """The end of a run would wait for the thread that does."""
    stream = loop._Data(run(data_dir)).batches(seed=0, start_step=0)
    assert stream.options().autotune.enabled is False


def test_evaluation_is_the_sum_over_tokens(trained, data_dir):
    """Against softmax in float64, for every batch size, over every row."""
    _, result = trained
    (source,) = split_of(data_dir, "dev")
    _, rows = source.rows(range(len(source)))
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


def test_rows_of_many_lengths(data_dir, tmp_path):
    """The unpacked form learns, goes on where it was, and evaluates every sentence."""
    from trainer.data import datagen

    problem = registry.problems.get("languagemodel_lm1b2k")
    datagen.generate(problem, data_dir / "text", tmp_path / "data", max_length=48)
    first = dataclasses.replace(
        run(tmp_path / "data", tmp_path / "run", steps=15), problem=problem.name
    )
    result = loop.train(first)
    again = loop.train(dataclasses.replace(first, train_steps=30))
    nats = [r.evaluations[-1][1].nats for r in (result, again)]
    assert nats[1] < nats[0]
    found = evaluate(again.checkpoint, tmp_path / "data", 96)
    assert found.sentences == 200
    np.testing.assert_allclose(found.nats, nats[1], rtol=1e-5)


def test_a_finished_run_says_so(trained, data_dir):
    output_dir, _ = trained
    assert loop.finished(run(data_dir, output_dir, 410, optimizer=OURS)) is None
    for steps in (400, 300):
        again = run(data_dir, output_dir, steps, optimizer=OURS)
        said = loop.finished(again)
        assert f"model-400.keras is at step 400 of {steps}" in said
        with pytest.raises(UsageError, match="is at step 400 already"):
            loop.train(again)


def test_an_output_dir_belongs_to_one_run(trained, data_dir):
    output_dir, _ = trained
    other = run(data_dir, output_dir, 410, optimizer="sgd")
    for refuse in (loop.train, loop.finished, check.check):
        with pytest.raises(UsageError, match="hparams.*choose another output_dir"):
            refuse(other)


def test_the_best_model_is_kept_and_ends_the_run(data_dir, tmp_path):
    """At an absurd rate the first evaluation stays the best."""
    wild = dataclasses.replace(
        run(
            data_dir,
            tmp_path,
            400,
            optimizer=OURS,
            learning_rate_constant=3000.0,
            learning_rate_warmup_steps=20,
        ),
        local_eval_frequency=2,
        early_stopping_evaluations=3,
    )
    result = loop.train(wild)
    nats = [e.nats_per_token for _, e in result.evaluations]
    assert result.steps < 400
    assert len(nats) >= 4 and all(not x < min(nats[:-3]) for x in nats[-3:])
    step, best, *_ = checkpoints.best(tmp_path)
    assert best == min(nats) and step == result.evaluations[nats.index(best)][0]
    found = evaluate(tmp_path / "checkpoints" / "best.keras", data_dir)
    np.testing.assert_allclose(found.nats_per_token, best, rtol=1e-6)
    assert "and 3 evaluations were no better" in loop.finished(wild)
    # Whatever it is evaluated by from now on, three evaluations were made.
    often = dataclasses.replace(wild, local_eval_frequency=1)
    assert loop.finished(often) == loop.finished(wild)
    assert (
        loop.finished(dataclasses.replace(often, early_stopping_evaluations=4)) is None
    )
    assert loop.finished(dataclasses.replace(wild, eval_steps=1)) is None
    patient = dataclasses.replace(wild, early_stopping_evaluations=0)
    assert loop.finished(patient) is None


def test_warm_start(trained, data_dir, tmp_path):
    """A start that is refused leaves nothing: the corrected one runs."""
    output_dir, result = trained
    path = str(checkpoints.latest(output_dir))
    # A rate of almost 0: what is evaluated is what the run started from.
    cold = run(
        data_dir, tmp_path / "run", 1, optimizer="sgd", learning_rate_constant=1e-9
    )
    wider = dataclasses.replace(cold.hparams, filter_size=128)
    for wrong, message in (
        ({"warm_start_from": str(tmp_path / "none.keras")}, "there is no checkpoint"),
        (
            {"warm_start_from": path, "hparams": wider},
            r"has shape \(.*64.* there and \(.*128",
        ),
        (
            {"warm_start_from": path, "data_dir": str(other_words(data_dir, tmp_path))},
            "has another vocabulary than the one",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            loop.train(dataclasses.replace(cold, **wrong))
        assert not (tmp_path / "run").exists()
    warm = loop.train(dataclasses.replace(cold, warm_start_from=path))
    nats = result.evaluations[-1][1].nats
    np.testing.assert_allclose(warm.evaluations[-1][1].nats, nats, rtol=1e-5)


def other_words(data_dir, tmp_path):
    """Data whose vocabulary has as many pieces, but others."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in data_dir.glob(f"{PROBLEM}*"):
        shutil.copy(file, folder)
    path = dataset.Paths(folder, PROBLEM).description
    fields = json.loads(path.read_text()) | {"tokenizer_sha256": "0" * 64}
    path.write_text(json.dumps(fields))
    return folder


def test_a_checkpoint_is_checked_where_an_update_takes_several_batches(data_dir):
    report = check.check(run(data_dir, gradient_accumulation_steps=3))
    assert report.endswith("all is well")


def test_accumulated_batches_are_one_large_batch(data_dir):
    """Two steps of half the rows, averaged, are a step of all."""
    (source,) = split_of(data_dir, "train")
    _, rows = source.rows(range(8))
    assert (rows != 0).all(), "as many tokens in each half"
    values = []
    for accumulated, batch in ((1, 8), (2, 4)):
        # SGD: AdaGrad's first step would blow up the rounding of small gradients.
        settings = run(
            data_dir,
            gradient_accumulation_steps=accumulated,
            optimizer="sgd",
            learning_rate_schedule="constant",
            learning_rate_constant=0.5,
        )
        model = building.build(settings, dataset.load_description(data_dir, PROBLEM))
        trained = building.trainable(model, settings, rows.size)
        trained.fit(rows, batch_size=batch, shuffle=False, verbose=0)
        values.append(model.get_weights())
    for a, b in zip(*values):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    "kind, name",
    [("optimizer", "et9"), ("model", "rnn"), ("learning_rate_schedule", "linear")],
)
def test_an_unknown_name_is_refused_before_anything_is_written(
    data_dir, tmp_path, kind, name
):
    settings = run(data_dir, tmp_path / "run")
    if kind == "model":
        settings = dataclasses.replace(settings, model=name)
    else:
        hparams = dataclasses.replace(settings.hparams, **{kind: name})
        settings = dataclasses.replace(settings, hparams=hparams)
    kind = kind.removeprefix("learning_rate_")
    with pytest.raises(UsageError, match=f"unknown {kind} '{name}'.* Known: "):
        loop.train(settings)
    assert not (tmp_path / "run").exists()


def test_a_rate_that_ends_before_the_run_is_refused(data_dir):
    """By --check, too; one that ends with the run is not."""
    ended = run(
        data_dir,
        steps=9,
        learning_rate_schedule="cosine",
        learning_rate_warmup_steps=2,
        learning_rate_decay_steps=8,
    )
    for refuse in (loop.train, check.check):
        with pytest.raises(UsageError, match="before update 9, .*steps=8: give 9"):
            refuse(ended)
    building.check_schedule(dataclasses.replace(ended, train_steps=8))
    twice = dataclasses.replace(ended.hparams, gradient_accumulation_steps=2)
    building.check_schedule(dataclasses.replace(ended, train_steps=17, hparams=twice))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_signal_in_the_last_evaluation_is_heeded(data_dir, steps):
    """After which no step comes that could see it."""

    def on_evaluation(step, evaluation):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = loop.train(
        run(data_dir, steps=steps, optimizer="sgd"), on_evaluation=on_evaluation
    )
    assert result.steps == steps and result.interrupted_by == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before
