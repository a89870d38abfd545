"""Keeps records of finished runs in a file of JSON lines, and finds them again.

nan, which JSON has no word for, is null in the file.
"""

import json
import math
import pathlib
from typing import Any

from trainer.bin import cli


class Results:
    """Holds a file of records. A run that is in the file is not run again."""

    def __init__(self, path):
        self._path = pathlib.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_file() and not self._path.read_bytes().endswith(b"\n"):
            with open(self._path, "ab") as file:
                file.write(b"\n")  # a kill left half a line: it is not read

    def __iter__(self):
        if not self._path.is_file():
            return iter(())
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return iter([_parse(line) for line in lines if line.endswith("}")])

    def find(self, key):
        """Returns the first record with every item of `key`; None if there is none."""
        for record in self:
            if all(record.get(name) == value for name, value in key.items()):
                return record
        return None

    def run(self, key, function):
        """Returns the record with every item of `key`: an earlier one, or a new one.

        Args:
            key: dict that tells one run from others. Values are plain JSON.
            function: without arguments, gives the rest of the record.
        """
        found = self.find(key)
        if found is not None:
            return found
        line = cli.json_text(key | function())
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        return _parse(line)


def _parse(line) -> Any:
    return _with_nan(json.loads(line))


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
