r"""et-datagen: text -> SentencePiece model and rows of token ids.

    et-datagen --problem=languagemodel_lm1b32k_packed \
        --tmp_dir=FOLDER_OF_THE_UNPACKED_ARCHIVE --data_dir=data
"""

import time

from absl import flags

from trainer.bin import cli
from trainer.data import lm1b

_PROBLEM: cli.Holder = flags.DEFINE_string("problem", None, "Name of the problem.")
_DATA_DIR = cli.DEFINE_path("data_dir", None, "Folder to write to.")
_TMP_DIR = cli.DEFINE_path(
    "tmp_dir", None, "Folder of the text: see --source and --problem."
)
_MAX_LENGTH = cli.DEFINE_count(
    "max_length", None, "Tokens of a row. Default: the problem's."
)
_SOURCE = flags.DEFINE_enum(
    "source",
    "auto",
    lm1b.SOURCES,
    "lm1b: the unpacked folder, the .tar.gz, or a download by TFDS. auto: the first "
    "of folder and archive that --tmp_dir holds.",
)
_LM1B_SENTENCES = 30_301_028


def main(argv):
    cli.no_arguments(argv)
    cli.require(_PROBLEM, _DATA_DIR, _TMP_DIR)
    from trainer import registry
    from trainer.data import datagen

    seconds = {}
    description = datagen.generate(
        registry.problems.get(_PROBLEM.value),
        _TMP_DIR.value,
        _DATA_DIR.value,
        _MAX_LENGTH.value,
        _SOURCE.value,
        bar=lambda split, sentences: timed(split, sentences, seconds),
    )
    lengths = ", ".join(map(str, description.splits["train"].rows))
    print(
        f"{description.problem}: {description.vocab_size:,} pieces, rows of "
        f"{lengths} tokens, in {_DATA_DIR.value}"
    )
    for name, split in description.splits.items():
        print(
            f"{name:<6}{split.sentences:>12,} sentences {split.words:>13,} words "
            f"{split.tokens:>13,} tokens {split.row_count:>9,} rows, "
            f"{description.efficiency(name):.1%} full"
        )
    if "train" in seconds:  # not where an interrupted run had made that split
        rate = description.splits["train"].sentences / seconds["train"]
        print(
            f"{rate:,.0f} sentences/s: all of lm1b takes "
            f"{_LM1B_SENTENCES / rate / 60:,.0f} minutes at that speed"
        )


def timed(split, sentences, seconds):
    """Yields the sentences of a split, shows how far they are, notes the seconds."""
    from trainer import progress

    shown = progress.Progress(label=split, unit="sentence")
    start = time.perf_counter()
    yield from shown.over(sentences)
    shown.close()
    seconds[split] = time.perf_counter() - start


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
