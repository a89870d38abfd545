"""SentencePiece subwords. Ids 0 and 1 are padding and EOS, as in Tensor2Tensor."""

import hashlib
import io
import itertools
import pathlib

from trainer.errors import UsageError

PAD_ID = 0
EOS_ID = 1
# More text than this does not change a vocabulary of 32k, and takes minutes.
MAX_TRAINING_SENTENCES = 500_000


def train(sentences, vocab_size) -> bytes:
    """Trains a unigram model and returns it serialized.

    Text is left as it is (no normalization), and a character that the model does
    not know becomes bytes, so every text can be encoded and decoded exactly and
    perplexities never profit from an unknown token. A small corpus may yield
    fewer pieces than `vocab_size`.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.islice(iter(sentences), MAX_TRAINING_SENTENCES),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        character_coverage=0.9999,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=2,
        bos_id=-1,
        num_threads=1,  # so that the same text always gives the same model
        minloglevel=2,
    )
    return model.getvalue()


def load(path):
    """Loads a SentencePiece model file. Returns the processor."""
    import sentencepiece

    if not pathlib.Path(path).is_file():
        raise UsageError(f"no SentencePiece model at {path}: run et-datagen first")
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def checksum(path) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
