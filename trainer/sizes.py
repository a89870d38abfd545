"""Sizes of memory as people write them: the one spelling of flags and hparams."""

import re

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class Bytes(int):
    """Makes a size in bytes of a number or of text: `Bytes("64KB")` is 64000.

    Raises:
        ValueError: the text is no size.
    """

    def __new__(cls, size: str | float) -> "Bytes":
        match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMG]?B?)", str(size).strip().upper())
        if not match or match.group(2) not in _UNITS:
            raise ValueError(f"{size} is not a size such as 4096, 64KB or 1.5MB")
        count = float(match.group(1)) * _UNITS[match.group(2)]
        if count >= 2**63:
            raise ValueError(f"{size} is not a size such as 4096, 64KB or 1.5MB")
        return super().__new__(cls, count)
