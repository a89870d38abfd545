"""Continuations with a cache are those without one."""

import functools
import itertools

import keras
import numpy as np
import pytest

from trainer import registry
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.inference import beam_search
from trainer.inference import decoding
from trainer.models.language_model import LanguageModel
from trainer.models.transformer import TransformerLM

VOCAB, MAX_LENGTH = 12, 24
EOS = 1
HPARAMS = HParams(num_hidden_layers=2, hidden_size=16, filter_size=32, num_heads=2)
PROMPTS = [[], [5], [4, 3, 2, 9, 7], [8] * 11]


def transformer(seed=0, vocab_size=VOCAB, dtype="float32"):
    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = registry.models.get("transformer_lm")(HPARAMS, vocab_size, MAX_LENGTH)
    finally:
        keras.config.set_dtype_policy(before)
    for v in model.trainable_variables:  # so that predictions are not all alike
        v.assign(v + np.random.default_rng(seed).normal(0, 0.3, v.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return transformer()


def log_probabilities(model, ids):
    """Of every token after `ids`, from the whole model."""
    row = np.zeros((1, MAX_LENGTH), "int32")
    row[0, : len(ids)] = ids
    logits = model.predict_on_batch(row)[0, len(ids)].astype("float64")
    logits[0] = -np.inf
    return logits - np.log(np.exp(logits).sum())


def greedy(model, prompt, length):
    """Token by token, each time from the whole prefix."""
    out = []
    while len(out) < length and len(prompt) + len(out) < MAX_LENGTH:
        out.append(int(np.argmax(log_probabilities(model, [*prompt, *out]))))
        if out[-1] == EOS:
            break
    return out + [0] * (length - len(out))


def decoder(model, length, function=decoding.generate, **settings):
    function = functools.partial(function, **settings)
    return decoding.Decoder(model, MAX_LENGTH, length, function)


def test_greedy_is_what_the_whole_model_says(monkeypatch):
    """For prompts of many lengths in one batch, past EOS and up to the row's end.

    The cache is as long as a row, whatever length is asked for.
    """
    slots = []
    empty_cache = TransformerLM.empty_cache

    def spy(self, rows, count):
        slots.append(count)
        return empty_cache(self, rows, count)

    monkeypatch.setattr(TransformerLM, "empty_cache", spy)
    model = transformer()
    continuations = decoder(model, 100_000, temperature=0)
    for seed in range(3):
        model.set_weights(transformer(seed).get_weights())
        found = continuations(PROMPTS)
        expected = [greedy(model, prompt, MAX_LENGTH) for prompt in PROMPTS]
        np.testing.assert_array_equal(found, expected)
    assert set(slots) == {MAX_LENGTH + 1}


@pytest.mark.parametrize(
    "function",
    [functools.partial(decoding.generate, temperature=0), beam_search.beam_search],
    ids=["greedy", "beams"],
)
def test_one_prompt_at_a_time_of_many_widths(model, function):
    """As they come interactively: TensorFlow traces the second width for all."""
    prompts = [[2 + n % 10 for n in range(width)] for width in (3, 20, 5)]

    def decoded(batches):
        decode = decoding.Decoder(model, MAX_LENGTH, 4, function)
        found = map(decode, batches)
        found = [f[0] if isinstance(f, tuple) else f for f in found]
        return np.concatenate([np.asarray(f) for f in found])

    alone = decoded([prompt] for prompt in prompts)
    np.testing.assert_array_equal(alone, decoded([prompts]))


def test_sampling_is_seeded_and_ends(model):
    sample = decoder(model, 15)
    prompts = [[5]] * 64
    first = sample(prompts, seed=1)
    np.testing.assert_array_equal(first, sample(prompts, seed=1))
    for seed in (2, -1, 2**31, 2**32 - 1, 10**30):  # every integer is one
        assert (sample(prompts, seed=seed) != first).any()
    for row in first.tolist():
        real = row[: row.index(0)] if 0 in row else row
        assert not any(row[len(real) :]), "tokens after the end"
        assert EOS not in real[:-1]
        assert real[-1] == EOS or len(real) == 15


def test_first_tokens_come_with_the_models_probabilities(model):
    prompt = [4, 3, 2]
    drawn = decoder(model, 1)([prompt] * 20_000)[:, 0]
    frequencies = np.bincount(drawn, minlength=VOCAB) / len(drawn)
    np.testing.assert_allclose(
        frequencies, np.exp(log_probabilities(model, prompt)), atol=0.015
    )


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_beam_search_finds_the_best_of_all(alpha):
    """With beams enough, it is exhaustive search."""
    model = transformer(vocab_size=5)
    length, prompt = 3, [4, 3]
    scores = {}
    for tokens in itertools.product(range(1, 5), repeat=length):
        tokens = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
        log_p = sum(
            log_probabilities(model, [*prompt, *tokens[:k]])[token]
            for k, token in enumerate(tokens)
        )
        penalty = ((5 + len(tokens)) / 6) ** alpha
        scores[tuple([*tokens, *[0] * (length - len(tokens))])] = log_p / penalty
    best = sorted(scores, key=scores.get, reverse=True)[:4]
    search = decoder(model, length, beam_search.beam_search, beams=40, alpha=alpha)
    found, found_scores = search([prompt, [2]])
    assert [tuple(beam) for beam in found[0, :4].tolist()] == best
    np.testing.assert_allclose(
        found_scores[0, :4], [scores[b] for b in best], rtol=1e-4
    )
    assert (found[1, 0] != found[0, 0]).any()


def test_a_prompt_that_is_full_goes_on_with_nothing(model):
    """`Decoder` refuses it; the function itself finds nothing."""
    ids = np.full((1, 24), 5, "int32")
    _, scores = beam_search.beam_search(model, ids, 24, 24, beams=2, alpha=1.0)
    assert (keras.ops.convert_to_numpy(scores) < -1e8).all()


def test_beams_are_no_worse_than_greedy(model):
    """Their scores are the model's, and the best is at least greedy's."""

    def score(prompt, tokens):
        tokens = [t for t in tokens if t]
        return sum(
            log_probabilities(model, [*prompt, *tokens[:k]])[token]
            for k, token in enumerate(tokens)
        )

    search = decoder(model, 20, beam_search.beam_search, beams=3, alpha=0.0)
    search(PROMPTS[:1])  # of another number of prompts before
    found, scores = search(PROMPTS)
    for prompt, beams, beam_scores in zip(PROMPTS, found.tolist(), scores):
        expected = [score(prompt, beam) for beam in beams]
        np.testing.assert_allclose(beam_scores, expected, rtol=1e-4)
        assert beam_scores[0] >= score(prompt, greedy(model, prompt, 20)) - 1e-4


def test_half_precision_is_decoded():
    model = transformer(dtype="mixed_bfloat16")
    assert decoder(model, 5)(PROMPTS).shape == (4, 5)


def test_a_prompt_without_room_is_refused(model):
    with pytest.raises(UsageError, match="has 24 tokens.*shorten it to 23"):
        decoder(model, 5)([[3] * MAX_LENGTH])


@pytest.mark.parametrize(
    "function, settings",
    [
        (decoding.generate, {"temperature": np.nan}),
        (decoding.generate, {"temperature": -1.0}),
        (decoding.generate, {"top_k": -1}),
        (decoding.generate, {"top_p": np.nan}),
        (decoding.generate, {"top_p": 0.0}),
        (beam_search.beam_search, {"alpha": np.nan}),
        (beam_search.beam_search, {"beams": 0}),
    ],
)
def test_a_number_out_of_range_is_refused(model, function, settings):
    ((name, value),) = settings.items()
    with pytest.raises(UsageError, match=f"{name} must be a number.* Got {value}"):
        function(model, np.array([[5]], "int32"), 3, MAX_LENGTH, **settings)


def test_a_model_without_a_decode_step_is_refused():
    row = keras.Input((None,), dtype="int32")
    embedding = keras.layers.ReversibleEmbedding(5, 4)
    other = LanguageModel(row, embedding(row), embedding, name="bow")
    with pytest.raises(UsageError, match="'bow' cannot be decoded: its class Language"):
        decoder(other, 3)
