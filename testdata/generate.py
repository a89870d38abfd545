"""Writes the corpus in this folder: sentences of a known probabilistic grammar.

    python -m testdata.generate [--output_dir=testdata]

The words are invented, their frequencies Zipfian. What a language model must learn
is real: agreement in number between subject and verb across nested clauses, a
topic that the first noun sets for the rest, words that prefer a topic.

    S      -> Clause (, Conj Clause)?  .
    Clause -> NP[n] Adverb? VP[n]
    NP[n]  -> Det[n] Adjective? Noun[n] (Prep NP[m] | that Adverb? VP[n])?
    VP[n]  -> Intransitive[n] | Transitive[n] NP[m]

The grammar is unambiguous: every noun phrase has at most one modifier, which
follows it at once, and every word belongs to one class. So the probability of a
sentence is the product of the choices that made it, and the entropy per word of
the text is known exactly.
"""

import argparse
import bisect
import itertools
import json
import math
import pathlib
import random

FOLDER = "1-billion-word-language-modeling-benchmark-r13output"
TRAIN = "training-monolingual.tokenized.shuffled/news.en-{:05d}-of-00100"
DEV = "heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050"

TOPICS = 5
NUMBERS = ("singular", "plural")
# Share of the nouns after the first that stay with the sentence's topic.
ON_TOPIC = 0.8
P_SINGULAR = 0.6
P_ADJECTIVE = 0.3
P_ADVERB = 0.15
P_COMPOUND = 0.2
P_TRANSITIVE = 0.6
P_RELATIVE = 0.4  # of modifiers; the others are prepositional
P_MODIFIER = (0.35, 0.2, 0.0)  # by depth of the noun phrase

CLASS_SIZES = {
    "noun": 24,  # a topic
    "transitive": 60,
    "intransitive": 40,
    "adjective": 50,
    "adverb": 16,
    "preposition": 6,
    "conjunction": 3,
    "determiner": 3,
}


class Zipf:
    """p(rank r) = 1/r, normalized: a distribution over n items."""

    def __init__(self, n):
        weights = [1 / rank for rank in range(1, n + 1)]
        self.probabilities = [w / sum(weights) for w in weights]
        self._cumulative = list(itertools.accumulate(self.probabilities))

    def sample(self, rng):
        last = len(self.probabilities) - 1
        return min(bisect.bisect(self._cumulative, rng.random()), last)

    @property
    def entropy(self):
        return -sum(p * math.log(p) for p in self.probabilities)


def binary_entropy(p):
    return -sum(q * math.log(q) for q in (p, 1 - p) if q)


class Grammar:
    """Samples sentences, each with its log-probability, in nats."""

    def __init__(self, seed=1902):
        names = self._invent_words(random.Random(seed))
        self._lexicon = {}
        self._zipf = {}
        for kind, size in CLASS_SIZES.items():
            self._zipf[kind] = Zipf(size)
            numbered = kind not in (
                "adjective",
                "adverb",
                "preposition",
                "conjunction",
            )
            for topic in range(TOPICS if kind == "noun" else 1):
                for number in NUMBERS if numbered else (None,):
                    self._lexicon[kind, topic, number] = [
                        next(names) for _ in range(size)
                    ]

    @staticmethod
    def _invent_words(rng):
        syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
        seen = {"that"}
        while True:
            count = rng.choice((1, 2, 2, 2, 3, 3))
            word = "".join(rng.choice(syllables) for _ in range(count))
            word += rng.choice(("", "", "n", "r", "s", "l"))
            if word not in seen:
                seen.add(word)
                yield word

    def sample(self, rng):
        """One sentence: (list of words, nats)."""
        sentence = _Sentence(self, rng)
        sentence.clause()
        if sentence.flip(P_COMPOUND):
            sentence.words.append(",")
            sentence.word("conjunction")
            sentence.clause()
        return [*sentence.words, "."], sentence.nats

    def entropy(self):
        """Exact entropy and mean length of a sentence: (nats, words)."""
        h = {kind: zipf.entropy for kind, zipf in self._zipf.items()}
        off_topic = (1 - ON_TOPIC) * math.log(TOPICS - 1)
        stay = binary_entropy(ON_TOPIC) + off_topic

        def noun_phrase(depth):
            # The topic of the first noun counts ln(TOPICS) instead: see below.
            nats = binary_entropy(P_SINGULAR) + binary_entropy(P_ADJECTIVE)
            nats += h["determiner"] + P_ADJECTIVE * h["adjective"]
            nats += stay + h["noun"] + binary_entropy(P_MODIFIER[depth])
            words = 2 + P_ADJECTIVE
            p = P_MODIFIER[depth]
            if p:
                inner = noun_phrase(depth + 1)
                prep = (h["preposition"] + inner[0], 1 + inner[1])
                clause = verb_phrase(depth + 1)
                nats += p * (
                    binary_entropy(P_RELATIVE)
                    + P_RELATIVE * clause[0]
                    + (1 - P_RELATIVE) * prep[0]
                )
                words += p * (P_RELATIVE * (1 + clause[1]) + (1 - P_RELATIVE) * prep[1])
            return nats, words

        def verb_phrase(depth):
            inner = noun_phrase(depth)
            p = P_TRANSITIVE
            nats = binary_entropy(P_ADVERB) + P_ADVERB * h["adverb"]
            nats += binary_entropy(p) + p * (h["transitive"] + inner[0])
            nats += (1 - p) * h["intransitive"]
            return nats, P_ADVERB + 1 + p * inner[1]

        clause = [a + b for a, b in zip(noun_phrase(0), verb_phrase(0))]
        p = P_COMPOUND
        nats = (1 + p) * clause[0] + binary_entropy(p) + p * h["conjunction"]
        nats += math.log(TOPICS) - stay  # the first noun chooses freely
        words = (1 + p) * clause[1] + 2 * p + 1
        return nats, words


class _Sentence:
    """One derivation under way: words so far, their nats, the topic."""

    def __init__(self, grammar, rng):
        self._grammar = grammar
        self._rng = rng
        self._topic = None
        self.words = []
        self.nats = 0.0

    def flip(self, p):
        """True with probability p. A certain outcome draws nothing."""
        if p in (0, 1):
            return bool(p)
        outcome = self._rng.random() < p
        self.nats -= math.log(p if outcome else 1 - p)
        return outcome

    def uniform(self, n):
        self.nats += math.log(n)
        return self._rng.randrange(n)

    def word(self, kind, number=None, word_topic=0):
        """A word of a class; the topic decides which of them are frequent."""
        zipf = self._grammar._zipf[kind]
        rank = zipf.sample(self._rng)
        self.nats -= math.log(zipf.probabilities[rank])
        words = self._grammar._lexicon[kind, word_topic, number]
        turn = 0 if kind == "noun" else (self._topic or 0) * len(words) // TOPICS
        self.words.append(words[(rank + turn) % len(words)])

    def number(self):
        return NUMBERS[0 if self.flip(P_SINGULAR) else 1]

    def noun(self, number):
        if self._topic is None:
            self._topic = topic = self.uniform(TOPICS)
        elif self.flip(ON_TOPIC):
            topic = self._topic
        else:
            others = [t for t in range(TOPICS) if t != self._topic]
            topic = others[self.uniform(TOPICS - 1)]
        self.word("noun", number, topic)

    def noun_phrase(self, depth):
        number = self.number()
        self.word("determiner", number)
        if self.flip(P_ADJECTIVE):
            self.word("adjective")
        self.noun(number)
        if self.flip(P_MODIFIER[depth]):
            if self.flip(P_RELATIVE):
                self.words.append("that")
                self.verb_phrase(number, depth + 1)
            else:
                self.word("preposition")
                self.noun_phrase(depth + 1)
        return number

    def verb_phrase(self, number, depth):
        if self.flip(P_ADVERB):
            self.word("adverb")
        if self.flip(P_TRANSITIVE):
            self.word("transitive", number)
            self.noun_phrase(depth)
        else:
            self.word("intransitive", number)

    def clause(self):
        self.verb_phrase(self.noun_phrase(0), 0)


def write_corpus(output_dir, train_sentences=(12_000, 12_000), dev=1_200):
    """Writes train files, one dev file and `entropy.json`. Returns the latter."""
    grammar = Grammar()
    rng = random.Random(4620)
    root = pathlib.Path(output_dir) / FOLDER
    for number, count in enumerate(train_sentences, 1):
        _write(root / TRAIN.format(number), grammar, rng, count)
    nats, words = _write(root / DEV, grammar, rng, dev)
    sentence_nats, sentence_words = grammar.entropy()
    known = {
        "entropy_per_word_nats": sentence_nats / (sentence_words + 1),
        "perplexity_per_word": math.exp(sentence_nats / (sentence_words + 1)),
        # Of the very sentences in the development set.
        "dev_perplexity_per_word": math.exp(nats / (words + dev)),
    }
    path = pathlib.Path(output_dir) / "entropy.json"
    path.write_text(json.dumps(known, indent=2) + "\n")
    return known


def _write(path, grammar, rng, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = [grammar.sample(rng) for _ in range(count)]
    path.write_text("".join(" ".join(words) + "\n" for words, _ in samples))
    return sum(n for _, n in samples), sum(len(w) for w, _ in samples)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default=pathlib.Path(__file__).parent)
    print(json.dumps(write_corpus(parser.parse_args().output_dir), indent=2))
