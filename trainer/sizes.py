"""Sizes of memory as people write them."""

import re

from trainer.errors import UsageError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(flag, text):
    """4096, 64KB, 1.5MB -> bytes. `flag` is named in the error."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B?)", text.upper())
    if not match or match.group(2) not in _UNITS:
        raise UsageError(f"{flag}={text} is not a size such as 4096, 64KB or 1.5MB")
    return int(float(match.group(1)) * _UNITS[match.group(2)])
