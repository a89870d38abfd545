r"""et-decoder: continues prompts with a trained model.

    et-decoder --output_dir=run --decode_from_file=prompts.txt
    echo "The president" | et-decoder --output_dir=run --top_k=40
    et-decoder --output_dir=run --decode_interactive

A line is a prompt; an empty one asks for a sentence from its start. Output is
prompt and continuation, one a line. A line break or control character in it is
escaped, such as \n; with --json all text is exact.
"""

import functools
import pathlib
import sys
import time
import unicodedata

from absl import flags

from trainer.bin import cli
from trainer.data.tokenizer import EOS_ID
from trainer.errors import UsageError
from trainer.files import write_text
from trainer.paths import check_file

_OUTPUT_DIR = cli.DEFINE_path(
    "output_dir", None, "Folder of the run: its newest checkpoint."
)
_CHECKPOINT_PATH = cli.DEFINE_path(
    "checkpoint_path", None, "A checkpoint, in place of the newest."
)
_DATA_DIR = cli.DEFINE_path(
    "data_dir", None, "Needless: the run has its vocabulary. Refused if it differs."
)
_FROM_FILE = cli.DEFINE_path(
    "decode_from_file", "-", "Prompts, one a line; - is standard input."
)
_TO_FILE = cli.DEFINE_path("decode_to_file", None, "Output. Default: standard output.")
_INTERACTIVE = flags.DEFINE_bool(
    "decode_interactive", False, "Answer each prompt as it is entered."
)
_LENGTH = cli.DEFINE_count("decode_length", 100, "Tokens to continue with, at most.")
_TEMPERATURE = cli.DEFINE_number(
    "temperature", 1.0, "Of sampling; 0 takes the most likely token."
)
_TOP_K = cli.DEFINE_count(
    "top_k", 0, "Draw from the k likeliest tokens; 0: all.", least=0
)
_TOP_P = cli.DEFINE_number(
    "top_p",
    1.0,
    "Draw from the fewest tokens that have this probability together.",
    lambda p: 0 < p <= 1,
    "above 0 and at most 1",
)
_BEAM_SIZE = cli.DEFINE_count(
    "beam_size", 0, "Beams that search for the likeliest; 0: draw.", least=0
)
_ALPHA = cli.DEFINE_number(
    "alpha", 0.6, "Length penalty of the beams: larger prefers longer."
)
_NUM_SAMPLES = cli.DEFINE_count("num_samples", 1, "Continuations of each prompt.")
_SEED = cli.DEFINE_seed("Seed of the draws.")
_BATCH_SIZE = cli.DEFINE_count("batch_size", 32, "Continuations made at a time.")
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object a line.")
# Control characters, and separators of lines and of paragraphs.
_BREAKS = {"Cc", "Zl", "Zp"}


def main(argv):
    cli.no_arguments(argv)
    cli.require(_OUTPUT_DIR)
    check_settings()
    from trainer.runs import run_folder

    if _INTERACTIVE.value:
        run_folder.read_config(_OUTPUT_DIR.value)
        return interact(Continuer())
    with cli.lines("decode_from_file", _FROM_FILE.value) as found:
        run_folder.read_config(_OUTPUT_DIR.value)
        prompts = list(found)
    # What is wrong so far is said before Keras is imported.
    if not prompts:
        raise UsageError(f"--decode_from_file={_FROM_FILE.value} holds no line")
    continuer = Continuer()
    start, lines, tokens = time.perf_counter(), [], 0
    for answer in continuer.all(prompts):
        lines.append(cli.json_text(answer) if _JSON.value else show(answer))
        tokens += answer["tokens"]
        if not _TO_FILE.value:
            print(lines[-1], flush=True)
    if _TO_FILE.value:
        text = "".join(f"{line}\n" for line in lines)
        write_text(pathlib.Path(_TO_FILE.value), text)
    seconds = time.perf_counter() - start
    print(
        f"{len(lines):,} continuations, {tokens:,} tokens, {tokens / seconds:,.0f} "
        f"tokens/s; the first batch, which compiles, took {continuer.first_seconds:.1f}"
        f" of {seconds:.1f} s",
        file=sys.stderr,
    )
    return 0


def check_settings():
    if 0 < _BEAM_SIZE.value < _NUM_SAMPLES.value:
        raise UsageError(
            f"--num_samples={_NUM_SAMPLES.value} needs --beam_size of as much or more. "
            f"Got {_BEAM_SIZE.value}"
        )
    if _INTERACTIVE.value:
        why = "with --decode_interactive, which answers what is entered"
        cli.refuse((_FROM_FILE, _TO_FILE), why)
    if _BEAM_SIZE.value:
        draws = (_TEMPERATURE, _TOP_K, _TOP_P, _SEED)
        cli.refuse(draws, "with --beam_size: beams do not draw")
    else:
        cli.refuse((_ALPHA,), "without --beam_size: it is of beams")
        if _TEMPERATURE.value == 0:
            draws = (_TOP_K, _TOP_P, _SEED, _NUM_SAMPLES)
            cli.refuse(draws, "with --temperature=0: it takes the likeliest token")
    if _TO_FILE.value:
        check_file(_TO_FILE.value, f"--decode_to_file={_TO_FILE.value}")


class Continuer:
    """Continues prompts with the model that the flags name, as they say."""

    def __init__(self):
        from trainer.inference import beam_search
        from trainer.inference import decoding
        from trainer.runs import trained_model

        trained = trained_model.load(_OUTPUT_DIR.value, _CHECKPOINT_PATH.value)
        if _DATA_DIR.value:
            trained.check_data(_DATA_DIR.value)
        if _BEAM_SIZE.value:
            function = functools.partial(
                beam_search.beam_search, beams=_BEAM_SIZE.value, alpha=_ALPHA.value
            )
        else:
            function = functools.partial(
                decoding.generate,
                temperature=_TEMPERATURE.value,
                top_k=_TOP_K.value,
                top_p=_TOP_P.value,
            )
        self._processor = trained.processor
        self._decoder = decoding.Decoder(
            trained.model, trained.max_length, _LENGTH.value, function
        )
        self._copies = 1 if _BEAM_SIZE.value else _NUM_SAMPLES.value
        self.first_seconds = None

    def all(self, prompts):
        """Yields the answers to each prompt in turn: dicts."""
        prompts = [prompt.strip() for prompt in prompts]
        for number, ids in enumerate(self._processor.encode(prompts), start=1):
            self._decoder.check(ids, f"the prompt in line {number}")
        each = min(max(1, _BATCH_SIZE.value // self._copies), len(prompts))
        for start in range(0, len(prompts), each):
            batch = prompts[start : start + each]
            # A last batch that is smaller would be compiled for itself.
            filled = batch + [""] * (each - len(batch))
            began = time.perf_counter()
            found = self._continue(self._processor.encode(filled), _SEED.value + start)
            if self.first_seconds is None:
                self.first_seconds = time.perf_counter() - began
            for prompt, continuations in zip(batch, found):
                yield from (self._answer(prompt, c) for c in continuations)

    def _continue(self, ids, seed):
        if _BEAM_SIZE.value:
            beams, _ = self._decoder(ids)
            return beams[:, : _NUM_SAMPLES.value].tolist()
        copies = [prompt for prompt in ids for _ in range(self._copies)]
        found = self._decoder(copies, seed)
        return found.reshape(len(ids), self._copies, -1).tolist()

    def _answer(self, prompt, ids):
        # Together: where a word goes on, its two parts have no space between them.
        whole = [*self._processor.encode(prompt), *(i for i in ids if i > EOS_ID)]
        return {
            "prompt": prompt,
            "continuation": self._processor.decode(whole).removeprefix(prompt),
            "tokens": sum(i > 0 for i in ids),
            "ended": EOS_ID in ids,
        }


def show(answer):
    """Returns prompt and continuation as one line."""
    text = (answer["prompt"] + answer["continuation"]).strip(" ")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _BREAKS else c
        for c in text
    )


def interact(continuer):
    print("Enter a prompt; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            return 0
        try:
            for answer in continuer.all([prompt]):
                print(
                    cli.json_text(answer) if _JSON.value else show(answer), flush=True
                )
        except UsageError as error:
            print(error, file=sys.stderr)


_SELDOM = (
    "checkpoint_path",
    "data_dir",
    "alpha",
    "batch_size",
    "random_seed",
    "top_p",
)
run = cli.entry_point(main, __doc__, __name__, _SELDOM)

if __name__ == "__main__":
    run()
