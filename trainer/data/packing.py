"""Rows from token sequences of uneven length: packed, or one a row, in buckets."""

from trainer.data.tokenizer import EOS_ID


def chunks(ids, length):
    """Cuts one sentence, EOS appended, into pieces of at most `length` tokens.

    Every piece but the last fills a row by itself, so in a row a sentence ends
    either at EOS or at the row's end.
    """
    ids = [*ids, EOS_ID]
    return [ids[i : i + length] for i in range(0, len(ids), length)]


def bucket_lengths(max_length, shortest=16):
    """Row lengths of the unpacked form, ascending: few, so that few are compiled.

    max_length, 3/4, 1/2, 3/8, ... of it: a row is at most about a third padding.
    """
    lengths, whole = {max_length}, max_length
    while whole >= 2 * shortest:
        lengths |= {3 * whole // 4, whole // 2}
        whole //= 2
    return sorted(lengths)


def pack(sequences, length, open_rows=64):
    """Best fit: each sequence goes to the fullest open row that can take it.

    Args:
        sequences: iterable of (ids, payload) with 0 < len(ids) <= length.
        length: tokens of a row.
        open_rows: rows kept open. More pack tighter and mix distant sentences.

    Yields:
        (ids, payloads) per row: the concatenated ids, at most `length`, and the
        list of the payloads of its sequences. Order is deterministic.
    """
    rows = []  # lists [ids, payloads]
    for ids, payload in sequences:
        fitting = [r for r in rows if len(r[0]) + len(ids) <= length]
        if fitting:
            row = max(fitting, key=lambda r: len(r[0]))
        else:
            if len(rows) == open_rows:
                fullest = max(range(open_rows), key=lambda i: len(rows[i][0]))
                yield tuple(rows.pop(fullest))
            row = [[], []]
            rows.append(row)
        row[0].extend(ids)
        row[1].append(payload)
        if len(row[0]) == length:
            rows.remove(row)
            yield tuple(row)
    yield from map(tuple, rows)
