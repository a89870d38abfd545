"""Records of finished runs, kept in a file of JSON lines and found again."""

import json
import pathlib


class Results:
    """A file of records. A run that is in it is not run again."""

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
        return iter([json.loads(line) for line in lines if line.endswith("}")])

    def run(self, key, function):
        """The record with every item of `key`: an earlier one, or a new one.

        Args:
            key: dict that tells one run from others. Values are plain JSON.
            function: without arguments, gives the rest of the record.
        """
        for record in self:
            if all(record.get(name) == value for name, value in key.items()):
                return record
        record = json.loads(json.dumps(key | function()))
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record
