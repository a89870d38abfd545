r"""et-eval: how well a trained model predicts a split, or given text.

    et-eval --output_dir=run --data_dir=data
    et-eval --output_dir=run --score_file=text.txt > scores.tsv

With --score_file every line is a sentence. A line of output has its number, its
nats (-log p, its end counted), nats per token, tokens, words, perplexity per
word, and the windows it was scored in: more than 1 for lines longer than a row.
The last line has the totals of all.
"""

import itertools
import sys

from absl import flags

from trainer.bin import cli
from trainer.errors import UsageError

_OUTPUT_DIR = cli.DEFINE_path(
    "output_dir", None, "Folder of the run: its newest checkpoint."
)
_CHECKPOINT_PATH = cli.DEFINE_path(
    "checkpoint_path", None, "A checkpoint, in place of the newest."
)
_DATA_DIR = cli.DEFINE_path(
    "data_dir", None, "Folder that et-datagen wrote; not with --score_file."
)
_PROBLEM = flags.DEFINE_string(
    "problem", None, "Its name. Default: the one trained on."
)
_SPLIT = flags.DEFINE_enum("split", "dev", ["train", "dev", "test"], "What to score.")
_SCORE_FILE = cli.DEFINE_path(
    "score_file", None, "Text to score, one sentence a line; - is standard input."
)
_EVAL_STEPS = cli.DEFINE_count(
    "eval_steps", 0, "Batches to score; 0 covers the whole split.", least=0
)
_JSON = flags.DEFINE_bool(
    "json", False, "Print one JSON object instead; with --score_file one a line."
)


def main(argv):
    cli.no_arguments(argv)
    cli.require(_OUTPUT_DIR)
    if _SCORE_FILE.value:
        of_data = (_DATA_DIR, _PROBLEM, _SPLIT, _EVAL_STEPS)
        cli.refuse(of_data, "with --score_file, all of whose lines are scored")
    from trainer.runs import run_folder

    run_folder.read_config(_OUTPUT_DIR.value)
    if _SCORE_FILE.value:
        with cli.lines("score_file", _SCORE_FILE.value) as lines:
            return score(from_text_on(lines))
    cli.require(_DATA_DIR)
    from trainer.evaluation import evaluation

    trained = load()
    result = evaluation.evaluate_model(
        trained.model,
        _DATA_DIR.value,
        trained.check_data(_DATA_DIR.value, _PROBLEM.value),
        _SPLIT.value,
        trained.batch_size,
        _EVAL_STEPS.value,
        label=_SPLIT.value,
    )
    if _JSON.value:
        cli.print_json(result.to_dict())
    else:
        print(f"{trained.path}, {_SPLIT.value} split\n{result}")
    return 0


def from_text_on(lines):
    """Returns the same lines, of which one that is not blank has been seen.

    So what holds no text is refused before the model is loaded.
    """
    seen = []
    for line in lines:
        seen.append(line)
        if line.strip():
            return itertools.chain(seen, lines)
    raise UsageError(f"--score_file={_SCORE_FILE.value} holds no text")


def load():
    from trainer.runs import trained_model

    return trained_model.load(_OUTPUT_DIR.value, _CHECKPOINT_PATH.value)


_COLUMNS = ("nats", "nats_per_token", "tokens", "words", "perplexity_per_word")


def score(lines):
    """Prints a line for each line, and one for all."""
    from trainer import progress
    from trainer.evaluation import scoring

    trained = load()
    scores = scoring.score_lines(
        trained.model, trained.processor, lines, trained.max_length, trained.batch_size
    )
    total, windows, long_lines = None, 0, 0
    if not _JSON.value:
        print("line", *_COLUMNS, "windows", sep="\t")
    if not sys.stdout.isatty():  # there the lines themselves show it
        scores = progress.over(scores, unit="line")
    for s in scores:
        print_score(s.line, s.evaluation, s.windows)
        total = s.evaluation if total is None else total + s.evaluation
        windows += s.windows
        long_lines += s.windows > 1
    print_score("corpus", total, windows)
    if long_lines:
        print(
            f"{long_lines:,} lines have more than {trained.max_length} tokens: scored "
            "in overlapping windows",
            file=sys.stderr,
        )
    return 0


def print_score(line, evaluation, windows):
    if _JSON.value:
        cli.print_json({"line": line} | evaluation.to_dict() | {"windows": windows})
        return
    figures = evaluation.to_dict()
    cells = [f"{v:.6g}" if isinstance(v := figures[c], float) else v for c in _COLUMNS]
    cells[0] = f"{evaluation.nats:.4f}"
    print(line, *cells, windows, sep="\t")


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
