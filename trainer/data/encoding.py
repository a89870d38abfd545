"""Sentences -> sequences of token ids that fit a row, with what each of them counts."""

import itertools
import re
from collections.abc import Iterable
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trainer.data.tokenizer import EOS_ID
from trainer.data.tokenizer import Tokenizer

# Sentences that SentencePiece encodes at a time, with all cores.
_GROUP = 2000


class Counts(NamedTuple):
    """Sentences and words that end in some tokens, and UTF-8 bytes of their text.

    A sentence ends at its EOS, which counts as a newline.
    """

    sentences: int = 0
    words: int = 0
    bytes: int = 0


def sequences(
    sentences: Iterable[str], tokenizer: Tokenizer, length: int
) -> Iterator[tuple[list[int], Counts]]:
    """Yields the ids of every sentence, EOS appended, and their counts.

    A sentence of more than `length` tokens is cut into segments. Every segment but
    the last has exactly `length` tokens and fills a row by itself, so in a row a
    sentence ends either at EOS or at the row's end.
    """
    sentences = iter(sentences)
    while group := list(itertools.islice(sentences, _GROUP)):
        for text, ids in zip(group, tokenizer.encode(group)):
            ids = [*ids, EOS_ID]
            if len(ids) <= length:
                yield ids, Counts(1, len(text.split()), len(text.encode()) + 1)
            else:
                segments = [ids[i : i + length] for i in range(0, len(ids), length)]
                yield from zip(segments, segment_counts(text, segments, tokenizer))


def segment_counts(
    text: str, segments: list[list[int]], tokenizer: Tokenizer
) -> list[Counts]:
    """Returns the counts of each of the segments that a sentence was cut into."""
    of_segments = [tokenizer.byte_counts[ids].sum() for ids in segments]
    # The first byte is the space that SentencePiece puts in front.
    borders = np.cumsum(of_segments) - 1
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    of_characters = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    last_characters = [word.end() - 1 for word in re.finditer(r"\S+", text)]
    word_ends = np.cumsum(of_characters)[last_characters]
    words = np.searchsorted(word_ends, borders, side="right")
    return [
        Counts(int(i == len(segments) - 1), int(w), int(b))
        for i, (w, b) in enumerate(
            zip(np.diff(words, prepend=0), np.diff(borders, prepend=0))
        )
    ]
