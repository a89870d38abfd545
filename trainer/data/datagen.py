"""Text -> a data set: a SentencePiece model, rows, and their description."""

import bisect
import collections
import contextlib
import pathlib
from collections.abc import Callable
from collections.abc import Iterable

from trainer import files
from trainer.data import dataset
from trainer.data import encoding
from trainer.data import packing
from trainer.data import staging
from trainer.data import text
from trainer.data import tokenizer
from trainer.data import vocabulary
from trainer.data.encoding import Counts
from trainer.errors import UsageError

Sequences = Iterable[tuple[list[int], Counts]]
Bar = Callable[[str, Sequences], Sequences]


def generate(
    problem,
    tmp_dir: str | pathlib.Path,
    data_dir: str | pathlib.Path,
    max_length: int | None = None,
    source: str = "auto",
    bar: Bar | None = None,
) -> dataset.Description:
    """Generates the data set of a problem.

    An older data set of the problem stays until the new one is whole. An interrupted
    run, repeated, goes on from what it had finished; see `staging`. If that was all but
    its last renames, those are made, and nothing else.

    Args:
        problem: an entry of `registry.problems`.
        tmp_dir: folder of the text.
        data_dir: folder to write to; made if missing.
        max_length: tokens of a row. Defaults to the problem's.
        source: where the text comes from; see the problem.
        bar: None, or a function of a split and its encoded sentences, as
            `encoding.sequences` gives them, that wraps these, such as a progress bar.

    Returns:
        The description of the data set, as it stands in `data_dir`.

    Raises:
        UsageError: text is missing, empty or not UTF-8, or gives no vocabulary.
        OSError: a file cannot be written.
    """
    max_length = max_length or problem.max_length
    if max_length < 2:
        raise UsageError(f"max_length must be at least 2. Got {max_length}")
    sources = _text_files(problem, tmp_dir, source)
    origin = _origin(sources, problem.vocab_size, max_length)
    with staging.opened(data_dir, problem.name, origin) as staged:
        if staged.published:
            return staged.published
        vocab = _vocabulary(staged.paths, sources["train"], problem.vocab_size)
        splits = {
            split: staged.finished(split)
            or _split(staged, problem.packed, max_length, vocab, split, names, bar)
            for split, names in sources.items()
        }
        description = dataset.Description(
            problem=problem.name,
            vocab_size=vocab.vocab_size(),
            max_length=max_length,
            packed=problem.packed,
            tokenizer_sha256=tokenizer.checksum(staged.paths.tokenizer),
            splits=splits,
        )
        staged.publish(description)
    return description


def _text_files(problem, tmp_dir, source):
    """Returns {split: text files}; a split without text is refused before any work."""
    sources = problem.splits(tmp_dir, source)
    for split, names in sources.items():
        if not any(True for _ in text.sentences(names)):
            listed = ", ".join(map(str, names))
            raise UsageError(f"the {split} text is empty: {listed}")
    return sources


def _origin(sources, vocab_size, max_length):
    """Returns all that a data set follows from: for the text, sizes and times."""
    stats = {
        str(file): [file.stat().st_size, file.stat().st_mtime_ns]
        for names in sources.values()
        for file in names
    }
    return {"files": stats, "vocab_size": vocab_size, "max_length": max_length}


def _vocabulary(paths, sources, vocab_size):
    """Returns the tokenizer, which is trained unless an interrupted run has done so."""
    if not paths.tokenizer.is_file():
        model = vocabulary.train(text.sentences(sources), vocab_size)
        files.write_bytes(paths.tokenizer, model)
    return tokenizer.load(paths.tokenizer)


def _split(staged, packed, max_length, vocab, split, sources, bar):
    """Writes the rows of a split and returns its `dataset.Split`."""
    sequences = encoding.sequences(text.sentences(sources), vocab, max_length)
    sequences = bar(split, sequences) if bar else sequences
    if packed:
        lengths = [max_length]
        rows = packing.pack(sequences, max_length)
    else:
        lengths = packing.bucket_lengths(max_length)
        rows = ((ids, [counts]) for ids, counts in sequences)
    paths = {n: staged.paths.rows(split, n) for n in lengths}
    counts = _write_rows(rows, paths, sum(file.stat().st_size for file in sources))
    staged.finish(split, counts)
    return counts


def _write_rows(rows, paths, text_size):
    """Writes (ids, list of `Counts`) rows, each to the first length that fits.

    Args:
        rows: the rows of a split.
        paths: {length of a row: path of its file}, ascending.
        text_size: bytes of the split's text.

    Returns:
        The split's counts, a `dataset.Split`.

    Raises:
        OSError: a file cannot be written. No partial file is left.
    """
    lengths, written = list(paths), collections.Counter()
    totals, tokens = Counts(), 0
    first, last = {}, {}

    def needed():
        """Returns about how many bytes all rows of the split take."""
        so_far = sum(len(first[n]) * count for n, count in written.items())
        return so_far * max(1, text_size / max(1, totals.bytes))

    with contextlib.ExitStack() as stack:
        writers = {}
        for ids, counts in rows:
            length = lengths[bisect.bisect_left(lengths, len(ids))]
            if length not in writers:
                writer = _writer(paths[length], needed)
                writers[length] = stack.enter_context(writer)
            sums = Counts(*map(sum, zip(*counts)))
            record = dataset.encode_row(ids, sums.words, sums.bytes, length)
            first.setdefault(length, record)
            last[length] = record
            writers[length](record)
            totals = Counts(*map(sum, zip(totals, sums)))
            tokens += len(ids)
            written[length] += 1
    return dataset.Split(
        **totals._asdict(),
        tokens=tokens,
        rows=dict(sorted(written.items())),
        ends={n: dataset.checksum(first[n], last[n]) for n in sorted(written)},
    )


@contextlib.contextmanager
def _writer(path, needed):
    """Gives a function that writes a record to the file, which is whole at the end."""
    from array_record.python import array_record_module

    with files.removed_on_failure(path, needed):
        with files.system_errors(path, RuntimeError):
            writer = array_record_module.ArrayRecordWriter(
                str(files.partial_path(path)), "group_size:1"
            )
        try:

            def write(record):
                with files.system_errors(path, RuntimeError):
                    writer.write(record)

            yield write
        finally:
            with files.system_errors(path, RuntimeError):
                writer.close()
        files.finish(path)
