"""Rows from token sequences of uneven length: packed, or one a row, in buckets."""

from collections.abc import Iterable
from collections.abc import Iterator
from typing import TypeVar

Payload = TypeVar("Payload")


def bucket_lengths(max_length: int, shortest: int = 16) -> list[int]:
    """Returns the row lengths of the unpacked form, ascending.

    They are max_length and 3/4, 1/2, 3/8, ... of it: few, so that few are compiled,
    and a row is at most about a third padding.
    """
    lengths, whole = {max_length}, max_length
    while whole >= 2 * shortest:
        lengths |= {3 * whole // 4, whole // 2}
        whole //= 2
    return sorted(lengths)


def pack(
    sequences: Iterable[tuple[list[int], Payload]], length: int, open_rows: int = 64
) -> Iterator[tuple[list[int], list[Payload]]]:
    """Packs by best fit: a sequence goes to the fullest open row that can take it.

    Args:
        sequences: (ids, payload) with 0 < len(ids) <= length.
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
                ids_of_row, payloads = rows.pop(fullest)
                yield ids_of_row, payloads
            row = [[], []]
            rows.append(row)
        row[0].extend(ids)
        row[1].append(payload)
        if len(row[0]) == length:
            rows.remove(row)
            yield row[0], row[1]
    for ids_of_row, payloads in rows:
        yield ids_of_row, payloads
