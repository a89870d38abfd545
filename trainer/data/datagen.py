"""Text -> SentencePiece model and rows."""

import bisect
import collections
import dataclasses
import itertools
import json
import multiprocessing
import pathlib

from trainer.data import dataset
from trainer.data import packing
from trainer.data import problems
from trainer.data import tokenizer
from trainer.errors import UsageError
from trainer.files import finish
from trainer.files import partial_path
from trainer.files import write_atomically

# Sentences that a process encodes at a time.
_CHUNK = 2000


def generate(
    problem, tmp_dir, data_dir, max_length=None, source="auto", processes=1, bar=None
):
    """Generates the data of a problem.

    Args:
        problem: an entry of `registry.problems`.
        tmp_dir: folder of the text.
        data_dir: folder to write to; made if missing.
        max_length: tokens of a row. Defaults to the problem's.
        source: where the text comes from; see the problem.
        processes: that encode sentences. The result does not depend on it.
        bar: None, or a function of a split and its sentences that wraps them, such
            as a progress bar.

    Returns:
        A `dataset.Description`.

    Raises:
        UsageError: text is missing or empty.
    """
    max_length = max_length or problem.max_length
    if max_length < 2:
        raise UsageError(f"--max_length must be at least 2. Got {max_length}")
    files = problem.splits(tmp_dir, source)
    for split, names in files.items():  # fail before any work
        if not any(True for _ in problems.sentences(names)):
            listed = ", ".join(map(str, names))
            raise UsageError(f"the {split} text is empty: {listed}")
    paths = dataset.Paths(data_dir, problem.name)
    pathlib.Path(data_dir).mkdir(parents=True, exist_ok=True)
    paths.description.unlink(missing_ok=True)
    if not _same_text(paths, files, problem.vocab_size, max_length):
        model = tokenizer.train(problems.sentences(files["train"]), problem.vocab_size)
        write_atomically(paths.tokenizer, lambda path: path.write_bytes(model))
        _remember(paths, files, problem.vocab_size, max_length)
    processor = tokenizer.load(paths.tokenizer)
    splits = {}
    for split, names in files.items():
        done = _finished_split(paths, split)
        if not done:
            sentences = problems.sentences(names)
            sentences = bar(split, sentences) if bar else sentences
            sequences = _sequences(
                iter(sentences), paths.tokenizer, max_length, processes
            )
            if problem.packed:
                lengths = [max_length]
                rows = packing.pack(sequences, max_length)
            else:
                lengths = packing.bucket_lengths(max_length)
                rows = ((ids, [counts]) for ids, counts in sequences)
            done = _write_split(rows, paths, split, lengths)
        splits[split] = done
    description = dataset.Description(
        problem=problem.name,
        vocab_size=processor.vocab_size(),
        max_length=max_length,
        packed=problem.packed,
        tokenizer_sha256=tokenizer.checksum(paths.tokenizer),
        splits=splits,
    )
    _write_json(paths.description, dataclasses.asdict(description))
    for path in (paths.progress, *map(paths.split, files)):
        path.unlink(missing_ok=True)
    return description


# An interrupted run is continued: the vocabulary and the splits that were finished
# from the same text stay. `paths.progress` says from which text.


def _same_text(paths, files, vocab_size, max_length):
    if not (paths.progress.is_file() and paths.tokenizer.is_file()):
        return False
    fingerprint = _fingerprint(files, vocab_size, max_length)
    return json.loads(paths.progress.read_text()) == fingerprint


def _remember(paths, files, vocab_size, max_length):
    for split in problems.SPLITS:
        paths.split(split).unlink(missing_ok=True)
    _write_json(paths.progress, _fingerprint(files, vocab_size, max_length))


def _fingerprint(files, vocab_size, max_length):
    """What the rows follow from: sizes and times of the text files stand for them."""
    stats = {
        str(f): [f.stat().st_size, f.stat().st_mtime_ns]
        for names in files.values()
        for f in names
    }
    return {"files": stats, "vocab_size": vocab_size, "max_length": max_length}


def _finished_split(paths, split):
    if not paths.split(split).is_file():
        return None
    done = dataset.read_split(json.loads(paths.split(split).read_text()))
    whole = all(paths.rows(split, length).is_file() for length in done.rows)
    return done if whole else None


def _write_json(path, value):
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


def _sequences(sentences, model_path, max_length, processes):
    """Pieces of every sentence; the last carries the sentence's counts."""
    chunks = iter(lambda: list(itertools.islice(sentences, _CHUNK)), [])
    for encoded in _encode(chunks, model_path, processes):
        for ids, words, size in encoded:
            pieces = packing.chunks(ids, max_length)
            for piece in pieces[:-1]:
                yield piece, (0, 0, 0)
            yield pieces[-1], (1, words, size)


def _encode(chunks, model_path, processes):
    """Lists of (ids, words, bytes), in order, from lists of sentences."""
    if processes == 1:
        processor = tokenizer.load(model_path)
        yield from (_encode_chunk(chunk, processor) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")  # safe beside threads
    with context.Pool(processes, _start_worker, (str(model_path),)) as pool:
        # Bounded: a pool by itself would read the whole text ahead.
        pending = collections.deque()
        for chunk in chunks:
            pending.append(pool.apply_async(_encode_chunk, (chunk,)))
            if len(pending) > 2 * processes:
                yield pending.popleft().get()
        while pending:
            yield pending.popleft().get()


def _start_worker(model_path):
    global _worker_processor
    _worker_processor = tokenizer.load(model_path)


def _encode_chunk(sentences, processor=None):
    processor = processor or _worker_processor
    return [
        (ids, len(text.split()), len(text.encode()) + 1)
        for ids, text in zip(processor.encode(sentences), sentences)
    ]


def _write_split(rows, paths, split, lengths):
    """Writes (ids, counts) rows, each to the file of the first length that fits."""
    from array_record.python import array_record_module

    writers, files, written = {}, {}, collections.Counter()
    totals = [0, 0, 0]
    tokens = 0
    try:
        for ids, counts in rows:
            length = lengths[bisect.bisect_left(lengths, len(ids))]
            if length not in writers:
                files[length] = paths.rows(split, length)
                partial = partial_path(files[length])
                writers[length] = array_record_module.ArrayRecordWriter(
                    str(partial), "group_size:1"
                )
            sums = [sum(column) for column in zip(*counts)]
            writers[length].write(dataset.encode_row(ids, sums[1], sums[2], length))
            totals = [a + b for a, b in zip(totals, sums)]
            tokens += len(ids)
            written[length] += 1
    finally:
        for writer in writers.values():
            writer.close()
    for path in files.values():
        finish(path)
    done = dataset.Split(
        sentences=totals[0],
        words=totals[1],
        bytes=totals[2],
        tokens=tokens,
        rows=dict(sorted(written.items())),
    )
    _write_json(paths.split(split), dataclasses.asdict(done))
    return done
