"""Problems: where the text is, and how large the vocabulary and rows are."""

import dataclasses
import pathlib

from trainer import registry
from trainer.errors import UsageError

LM1B_FOLDER = "1-billion-word-language-modeling-benchmark-r13output"


@dataclasses.dataclass(frozen=True)
class Lm1bPacked:
    """Google Billion Words (Chelba et al. 2013), packed into rows.

    Splits are Tensor2Tensor's: all 99 training files, and the first of the 50
    held-out files as the development set that the literature reports.
    """

    name: str
    vocab_size: int
    packed_length: int = 256

    def sentences(self, split, tmp_dir):
        """Yields the split's sentences, stripped, blank lines left out."""
        for path in self.files(split, tmp_dir):
            with open(path, encoding="utf-8") as lines:
                try:
                    yield from filter(None, map(str.strip, lines))
                except UnicodeDecodeError as error:
                    raise UsageError(f"{path} is not UTF-8 text: {error}") from None

    def files(self, split, tmp_dir):
        """Text files of a split, sorted. `tmp_dir` holds the unpacked archive."""
        pattern = {
            "train": "training-monolingual.tokenized.shuffled/news.en-*",
            "dev": "heldout-monolingual.tokenized.shuffled/"
            "news.en.heldout-00000-of-00050",
        }[split]
        tmp_dir = pathlib.Path(tmp_dir)
        if not tmp_dir.is_dir():
            raise UsageError(f"--tmp_dir={tmp_dir} is not a folder")
        folder = tmp_dir
        if tmp_dir.name != LM1B_FOLDER:
            folder = tmp_dir / LM1B_FOLDER
        files = sorted(folder.glob(pattern))
        if not files:
            raise UsageError(
                f"no file matches {folder / pattern}: --tmp_dir must hold the "
                f"unpacked archive, the folder {LM1B_FOLDER}"
            )
        return files


for _vocab_size in (2048, 8192, 32768):
    _name = f"languagemodel_lm1b{_vocab_size // 1024}k_packed"
    registry.problems.register(Lm1bPacked(_name, _vocab_size), _name)
