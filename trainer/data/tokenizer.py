"""SentencePiece subwords. Ids 0 and 1 are padding and EOS, as in Tensor2Tensor."""

import functools
import hashlib
import pathlib
from typing import TYPE_CHECKING

from trainer.errors import UsageError

if TYPE_CHECKING:  # programs that need no more than an id answer at once
    import numpy as np

PAD_ID = 0
EOS_ID = 1
SPACE_MARK = "▁"  # SentencePiece's own sign for a space, U+2581
# SentencePiece's sign for an unknown character, U+2585: never in its vocabulary.
UNKNOWN_MARK = "▅"


class Tokenizer:
    """Encodes by a SentencePiece model so that every text survives, and decodes.

    SentencePiece alone reads "▁", its sign for a space, as a space. Here that
    character is encoded as its three UTF-8 bytes, the way of every character that the
    vocabulary lacks. All other text has the ids that SentencePiece alone gives it, and
    SentencePiece alone decodes all ids.

    Args:
        model: the serialized model.

    Raises:
        RuntimeError: SentencePiece cannot read the model.
    """

    def __init__(self, model: bytes):
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)

    def encode(self, text: str | list[str]) -> list:
        """Returns the ids of a text, or a list of ids for each of a list of texts."""
        if isinstance(text, str):
            return self.encode([text])[0]
        marked = [t.replace(SPACE_MARK, UNKNOWN_MARK) for t in text]
        encoded = self._processor.encode(marked)
        for t, ids in zip(text, encoded):
            if SPACE_MARK in t:
                self._restore_space_marks(ids, t)
        return encoded

    def _restore_space_marks(self, ids, text):
        """Replaces the bytes of "▅" in `ids` where `text` has a "▁" in its place."""
        space, unknown = (
            [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in mark.encode()]
            for mark in (SPACE_MARK, UNKNOWN_MARK)
        )
        marks = (c for c in text if c in (SPACE_MARK, UNKNOWN_MARK))
        for i in range(len(ids)):
            if ids[i : i + 3] == unknown and next(marks) == SPACE_MARK:
                ids[i : i + 3] = space

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self._processor.decode(ids)

    def vocab_size(self) -> int:
        """Returns the number of pieces, padding and EOS among them."""
        return self._processor.vocab_size()

    def serialized_model_proto(self) -> bytes:
        """Returns the model as `Tokenizer` and SentencePiece read it."""
        return self._processor.serialized_model_proto()

    @functools.cached_property
    def byte_counts(self) -> "np.ndarray":
        """The UTF-8 bytes of text that each id stands for: (V,) int64.

        EOS stands for a newline. In the sum over a text one space is too many, which
        SentencePiece puts in front of every text.
        """
        import numpy as np

        ids = range(self.vocab_size())
        pieces = self._processor.id_to_piece(list(ids))
        counts = [len(p.replace(SPACE_MARK, " ").encode()) for p in pieces]
        for i in ids:
            if self._processor.is_byte(i):
                counts[i] = 1
            elif self._processor.is_control(i) or self._processor.is_unknown(i):
                counts[i] = int(i == EOS_ID)
        return np.array(counts)


def load(path: str | pathlib.Path, sha256: str | None = None) -> Tokenizer:
    """Loads a SentencePiece model file.

    Args:
        path: of the file.
        sha256: the checksum that the file must have; None: any.

    Raises:
        UsageError: the file is missing or damaged.
    """
    if not pathlib.Path(path).is_file():
        raise UsageError(f"no SentencePiece model at {path}: run et-datagen first")
    damaged = f"{path} is damaged: run et-datagen again"
    if sha256 and checksum(path) != sha256:
        raise UsageError(damaged)
    try:
        return Tokenizer(pathlib.Path(path).read_bytes())
    except RuntimeError:
        raise UsageError(damaged) from None


def checksum(path: str | pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
