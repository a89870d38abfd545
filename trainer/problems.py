"""Problems: where the text is, and how large the vocabulary and rows are.

A problem yields the sentences of its splits. "train" and "dev" it must have; "test"
it may have.
"""

import dataclasses
import pathlib

from trainer import lm1b
from trainer import registry
from trainer.errors import UsageError

SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class PackedText:
    """Sentences, one a line, packed into rows."""

    name: str
    vocab_size: int
    packed_length: int = 256

    def splits(self, tmp_dir, source="auto"):
        """{split: sorted text files}. `tmp_dir` holds train.txt, dev.txt, test.txt."""
        if source not in ("auto", "folder"):
            raise UsageError(
                f"{self.name} is read from a folder, not --source={source}"
            )
        folder = pathlib.Path(tmp_dir)
        if not folder.is_dir():
            raise UsageError(f"--tmp_dir={tmp_dir} is not a folder")
        found = {s: [folder / f"{s}.txt"] for s in SPLITS}
        for split in ("train", "dev"):
            if not found[split][0].is_file():
                raise UsageError(
                    f"{found[split][0]} is missing: --tmp_dir must hold train.txt and "
                    "dev.txt, one sentence a line, and may hold test.txt"
                )
        return {s: files for s, files in found.items() if files[0].is_file()}


class Lm1bPacked(PackedText):
    """Google Billion Words (Chelba et al. 2013), packed into rows.

    Splits are Tensor2Tensor's: all 99 training files, and the first of the 50
    held-out files as the development set that the literature reports. "test" is
    all of the held-out files.
    """

    def splits(self, tmp_dir, source="auto"):
        """{split: sorted text files}, from what `lm1b.folder` finds."""
        folder = lm1b.folder(tmp_dir, source)
        return {split: lm1b.files(folder, split) for split in SPLITS}


def sentences(files):
    """Yields the lines of text files, stripped, blank lines left out."""
    for path in files:
        with open(path, encoding="utf-8") as lines:
            try:
                yield from filter(None, map(str.strip, lines))
            except UnicodeDecodeError as error:
                raise UsageError(f"{path} is not UTF-8 text: {error}") from None


for _vocab_size in (2048, 8192, 32768):
    for _form, _class in (
        ("languagemodel_lm1b", Lm1bPacked),
        ("text_lines", PackedText),
    ):
        _name = f"{_form}{_vocab_size // 1024}k_packed"
        registry.problems.register(_class(_name, _vocab_size), _name)
