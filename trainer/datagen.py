"""Text -> SentencePiece model and packed rows."""

import dataclasses
import json
import pathlib

from trainer import dataset
from trainer import packing
from trainer import tokenizer
from trainer.errors import UsageError
from trainer.files import write_atomically

SPLITS = ("train", "dev")


def generate(problem, tmp_dir, data_dir, max_length=None):
    """Generates the data of a problem.

    Args:
        problem: an entry of `registry.problems`.
        tmp_dir: folder of the text.
        data_dir: folder to write to; made if missing.
        max_length: tokens of a row. Defaults to the problem's.

    Returns:
        A `dataset.Description`.

    Raises:
        UsageError: text is missing or empty.
    """
    max_length = max_length or problem.packed_length
    if max_length < 2:
        raise UsageError(f"--max_length must be at least 2. Got {max_length}")
    for split in SPLITS:  # fail before any work
        if not any(True for _ in problem.sentences(split, tmp_dir)):
            files = [str(f) for f in problem.files(split, tmp_dir)]
            raise UsageError(f"the {split} text is empty: {', '.join(files)}")
    paths = dataset.Paths(data_dir, problem.name)
    pathlib.Path(data_dir).mkdir(parents=True, exist_ok=True)
    paths.description.unlink(missing_ok=True)
    model = tokenizer.train(problem.sentences("train", tmp_dir), problem.vocab_size)
    write_atomically(paths.tokenizer, lambda path: path.write_bytes(model))
    processor = tokenizer.load(paths.tokenizer)
    splits = {
        split: _write_split(
            problem.sentences(split, tmp_dir),
            processor,
            paths.rows(split),
            max_length,
        )
        for split in SPLITS
    }
    description = dataset.Description(
        problem=problem.name,
        vocab_size=processor.vocab_size(),
        max_length=max_length,
        tokenizer_sha256=tokenizer.checksum(paths.tokenizer),
        splits=splits,
    )
    text = json.dumps(dataclasses.asdict(description), indent=2)
    write_atomically(paths.description, lambda path: path.write_text(text))
    return description


def _sequences(sentences, processor, max_length):
    """Pieces of every sentence; the last carries the sentence's counts."""
    for sentence in sentences:
        pieces = packing.chunks(processor.encode(sentence), max_length)
        counts = (1, len(sentence.split()), len(sentence.encode()) + 1)
        for piece in pieces[:-1]:
            yield piece, (0, 0, 0)
        yield pieces[-1], counts


def _write_split(sentences, processor, path, max_length):
    from array_record.python import array_record_module

    totals = [0, 0, 0]
    tokens = rows = 0

    def write(partial):
        nonlocal totals, tokens, rows
        writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
        try:
            sequences = _sequences(sentences, processor, max_length)
            for ids, counts in packing.pack(sequences, max_length):
                sums = [sum(column) for column in zip(*counts)]
                writer.write(dataset.encode_row(ids, sums[1], sums[2], max_length))
                totals = [a + b for a, b in zip(totals, sums)]
                tokens += len(ids)
                rows += 1
        finally:
            writer.close()

    write_atomically(path, write)
    return dataset.Split(
        sentences=totals[0],
        words=totals[1],
        bytes=totals[2],
        tokens=tokens,
        rows=rows,
    )
