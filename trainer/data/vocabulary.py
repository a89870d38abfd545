"""Text -> a SentencePiece model of a given number of pieces."""

import collections
import io
import itertools
import math
import random
from collections.abc import Iterable
from collections.abc import Iterator

from trainer.data.tokenizer import EOS_ID
from trainer.data.tokenizer import PAD_ID
from trainer.data.tokenizer import UNKNOWN_MARK
from trainer.errors import UsageError

# More lines than this do not change a vocabulary of 32k, and take minutes.
MAX_SENTENCES = 500_000
# SentencePiece drops longer lines, and says nothing.
MAX_BYTES = 4192
_COVERAGE = 0.9999  # share of the text's characters that are pieces of their own
_RESERVED = 3 + 256  # padding, EOS and unknown; one piece for each byte


def train(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Trains a unigram model and returns the model serialized.

    Text is left as it is (no normalization), and a character that the model does
    not know becomes bytes, so every text can be encoded and decoded exactly and
    perplexities never profit from an unknown token. A small corpus may yield
    fewer pieces than `vocab_size`; of a large one `MAX_SENTENCES` lines are drawn.

    Raises:
        UsageError: SentencePiece can make no vocabulary of the text.
    """
    lines = (line for text in sentences for line in cut(text, MAX_BYTES))
    lines = sample(lines, MAX_SENTENCES)
    room = max(1, vocab_size - _RESERVED) * 9 // 10  # a tenth for longer pieces
    rare = rare_characters(lines, room)
    if rare:
        lines = [line.translate(dict.fromkeys(map(ord, rare))) for line in lines]
    try:
        return _train(lines, vocab_size)
    except RuntimeError as error:
        raise UsageError(
            f"SentencePiece can make no vocabulary of {vocab_size:,} pieces from the "
            f"train text: {error}"
        ) from None


def sample(lines: Iterable[str], count: int) -> list[str]:
    """Returns `count` lines, each line of the text as likely as any other.

    Whatever order the text has, by language or by domain, the lines stand for all of
    it. The same text gives the same lines, and one of at most `count` lines gives all
    of them, in order. The text is read once: Li 1994, "Reservoir-sampling algorithms of
    time complexity O(n(1 + log(N/n)))", algorithm L.
    """
    lines = iter(lines)
    drawn = list(itertools.islice(lines, count))
    draw = random.Random(0).random
    share = 1.0  # of the lines so far that would take a place, were they drawn now
    while True:
        share *= draw() ** (1 / count)
        passed = int(math.log(1 - draw()) / math.log1p(-share))
        line = next(itertools.islice(lines, passed, None), None)
        if line is None:
            return drawn
        drawn[int(draw() * count)] = line


def cut(text: str, limit: int) -> Iterator[str]:
    """Yields a text in lines of at most `limit` UTF-8 bytes.

    They end at spaces, or between characters where `limit` bytes have no space. A
    text of fewer bytes is one line. SentencePiece's reserved character "▅" is left
    out: it would drop the line.
    """
    text = text.replace(UNKNOWN_MARK, " ")
    if 4 * len(text) <= limit:  # no character has more bytes
        yield text
        return
    data = text.encode()
    start = 0
    while len(data) - start > limit:
        stop = rest = data.rfind(b" ", start, start + limit + 1)
        if stop < 0:
            stop = start + limit
            while data[stop] & 0b1100_0000 == 0b1000_0000:  # inside a character
                stop -= 1
            rest = stop - 1
        yield data[start:stop].decode()
        start = rest + 1
    yield data[start:].decode()


def rare_characters(lines: Iterable[str], room: int) -> list[str]:
    """Returns the characters that have no room among the pieces.

    SentencePiece gives each character a piece, but for the rarest that make up
    1 - `_COVERAGE` of the text, and fails where these pieces are too many.

    Args:
        lines: the text.
        room: characters that can be pieces.

    Returns:
        All but the `room` most frequent characters; an empty list where SentencePiece
        finds room by itself.
    """
    counts = collections.Counter()
    for line in lines:
        counts.update(line)
    ordered = counts.most_common()
    if sum(count for _, count in ordered[:room]) >= _COVERAGE * counts.total():
        return []
    return [character for character, _ in ordered[room:]]


def _train(lines, vocab_size):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        character_coverage=_COVERAGE,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=2,
        bos_id=-1,
        num_threads=1,  # so that the same text always gives the same model
        minloglevel=2,
    )
    return model.getvalue()
