import json
import math
import pathlib
import random

from testdata import generate

HERE = pathlib.Path(generate.__file__).parent


def test_corpus_is_what_the_generator_writes(tmp_path):
    known = generate.write_corpus(tmp_path)
    assert known == json.loads((HERE / "entropy.json").read_text())
    files = sorted(p for p in tmp_path.rglob("news.en*"))
    assert len(files) == 3
    for path in files:
        committed = HERE / path.relative_to(tmp_path)
        assert path.read_bytes() == committed.read_bytes()


def test_entropy_is_the_mean_of_the_samples():
    grammar = generate.Grammar()
    rng = random.Random(0)
    samples = [grammar.sample(rng) for _ in range(5_000)]
    nats, words = grammar.entropy()
    for exact, values in (
        (nats, [n for _, n in samples]),
        (words, [len(w) for w, _ in samples]),
    ):
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        assert abs(mean - exact) < 4 * math.sqrt(variance / len(values))


def test_words_belong_to_one_class():
    words = [w for ws in generate.Grammar()._lexicon.values() for w in ws]
    assert len(words) == len(set(words))
