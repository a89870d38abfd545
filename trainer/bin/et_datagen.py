r"""et-datagen: text -> SentencePiece model and packed rows.

    et-datagen --problem=languagemodel_lm1b32k_packed \
        --tmp_dir=FOLDER_OF_THE_UNPACKED_ARCHIVE --data_dir=data
"""

from absl import flags

from trainer.bin import runner

_PROBLEM = flags.DEFINE_string("problem", None, "Name of the problem.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder to write to.")
_TMP_DIR = flags.DEFINE_string(
    "tmp_dir", None, "Folder that holds the unpacked archive."
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "Tokens of a row. Default: the problem's."
)


def main(argv):
    runner.no_arguments(argv)
    runner.require(_PROBLEM, _DATA_DIR, _TMP_DIR)
    from trainer import datagen
    from trainer import registry

    description = datagen.generate(
        registry.problems.get(_PROBLEM.value),
        _TMP_DIR.value,
        _DATA_DIR.value,
        _MAX_LENGTH.value,
    )
    print(
        f"{description.problem}: {description.vocab_size:,} pieces, rows of "
        f"{description.max_length} tokens, in {_DATA_DIR.value}"
    )
    for name, split in description.splits.items():
        print(
            f"{name:<6}{split.sentences:>12,} sentences {split.words:>13,} words "
            f"{split.tokens:>13,} tokens {split.rows:>9,} rows, "
            f"{description.efficiency(name):.1%} full"
        )


run = runner.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
