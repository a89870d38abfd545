"""Problems: where the text is, and how large the vocabulary and rows are.

A problem names the text files of its splits. It must have "train" and "dev", and may
have "test".
"""

import dataclasses
import pathlib

from trainer import registry
from trainer.data import lm1b
from trainer.errors import UsageError

SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class TextLines:
    """Describes a problem whose text is files of sentences, one a line."""

    name: str
    vocab_size: int
    packed: bool  # many sentences a row; else one a row, in rows of few lengths
    max_length: int = 256

    def splits(
        self, tmp_dir: str | pathlib.Path, source: str = "auto"
    ) -> dict[str, list[pathlib.Path]]:
        """Returns {split: text files} of the files train.txt, dev.txt and test.txt.

        Args:
            tmp_dir: folder of the files.
            source: "folder" or "auto", which is the same here.

        Raises:
            UsageError: train.txt or dev.txt is missing.
        """
        if source not in ("auto", "folder"):
            raise UsageError(f"{self.name} is read from a folder, not source={source}")
        folder = pathlib.Path(tmp_dir)
        if not folder.is_dir():
            raise UsageError(f"tmp_dir={tmp_dir} is not a folder")
        found = {s: [folder / f"{s}.txt"] for s in SPLITS}
        for split in ("train", "dev"):
            if not found[split][0].is_file():
                raise UsageError(
                    f"{found[split][0]} is missing: tmp_dir must hold train.txt and "
                    "dev.txt, one sentence a line, and may hold test.txt"
                )
        return {s: files for s, files in found.items() if files[0].is_file()}


class Lm1b(TextLines):
    """Describes Google Billion Words (Chelba et al. 2013).

    Splits are Tensor2Tensor's: all 99 training files, and the first of the 50
    held-out files as the development set that the literature reports. "test" is
    all of the held-out files.
    """

    def splits(
        self, tmp_dir: str | pathlib.Path, source: str = "auto"
    ) -> dict[str, list[pathlib.Path]]:
        """Returns {split: sorted text files} of the folder that `lm1b.folder` finds."""
        folder = lm1b.folder(tmp_dir, source)
        return {split: lm1b.files(folder, split) for split in SPLITS}


for _text, _class in (("languagemodel_lm1b", Lm1b), ("text_lines", TextLines)):
    for _thousands in (2, 8, 32):
        for _ending, _packed in (("_packed", True), ("", False)):
            _name = f"{_text}{_thousands}k{_ending}"
            _problem = _class(_name, 1024 * _thousands, _packed)
            registry.problems.register(_problem, _name)
