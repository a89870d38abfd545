"""What all binaries share, tried on a small program of its own and on each of them."""

import json
import logging
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from trainer.bin import cli

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = [
    *(f"trainer.bin.{p.stem}" for p in ROOT.glob("trainer/bin/et_*.py")),
    *(
        f"{folder.replace('/', '.')}.{path.stem}"
        for folder in ("trainer/experiments", "benchmarks")
        for path in ROOT.glob(f"{folder}/*.py")
        if "entry_point(" in path.read_text() and path.stem != "experiment"
    ),
]
PROGRAMS = sorted(p for p in PROGRAMS if not p.endswith("_test"))


def call(body, *arguments, shell="{}", **environment):
    """Runs a program whose `main` is `body`: (status, stdout, stderr).

    `shell` is the line of bash that runs it, {} standing for the command.
    """
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    program = (
        "import sys\nfrom trainer.bin import cli\n"
        'PATH = cli.DEFINE_path("path", None, "A path.")\n'
        'PATHS = cli.DEFINE_paths("paths", None, "Paths.")\n'
        'SIZE = cli.DEFINE_size("size", None, "A size.")\n'
        'COUNT = cli.DEFINE_count("count", None, "A count.", least=0)\n'
        'COUNTS = cli.DEFINE_counts("counts", "1", "Counts.")\n'
        'NUMBER = cli.DEFINE_number("number", 1.0, "A number.")\n'
        'SEED = cli.DEFINE_seed("A seed.")\n'
        f"def main(argv):\n{lines}\n"
        'cli.entry_point(main, "demo: for tests", __name__)()\n'
    )
    command = '"$0" -c "$PROGRAM" "$@"'
    done = subprocess.run(
        ["bash", "-c", shell.format(command), sys.executable, *arguments],
        capture_output=True,
        env=os.environ | {"PROGRAM": program} | environment,
        cwd=ROOT,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--number=nan", "must be a number, 0 or more"),
        ("--number=inf", "must be a number, 0 or more"),
        ("--number=-1", "must be a number, 0 or more"),
        ("--number=x", "could not convert string to float: 'x'"),
        ("--count=-1", "-1 is not an integer in the range [0, 2147483647]"),
        ("--count=99999999999", "is not an integer in the range [0, 2147483647]"),
        ("--count=1.5", "invalid literal for int()"),
        ("--counts=1,0", "must be whole numbers of 1 and more"),
        ("--counts=1,x", "must be whole numbers of 1 and more"),
        ("--random_seed=-1", "is not an integer in the range [0, 4294967295]"),
        ("--random_seed=4294967296", "is not an integer in the range"),
        ("--size=much", "much is not a size such as 4096, 64KB or 1.5MB"),
        ("--size=-5KB", "is not a size such as"),
        ("--path=", "it must be a path and is empty"),
        ("--paths=a,,b", "it must be a path and is empty"),
        ("--usr_dir=", "it must be a path and is empty"),
        ("--flagfile=/none", "Unable to open flagfile"),
    ],
)
def test_a_wrong_value_is_one_line(argument, message):
    status, out, err = call("print('ran')", argument)
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err and argument.split("=")[0].strip("-") in err


def test_values():
    body = (
        "print(PATH.value, *PATHS.value, SIZE.value + 1, SEED.value, COUNTS.value)\n"
        "print(cli.flags_text('__main__'))"
    )
    status, out, err = call(
        body,
        "--path=~/a",
        "--paths=~/b,~,c",
        "--size=1.5KB",
        "--random_seed=4294967295",
        "--counts=1,22",
        HOME="/home/me",
    )
    assert status == 0, err
    values, *given = out.splitlines()
    assert values == "/home/me/a /home/me/b /home/me c 1501 4294967295 ['1', '22']"
    assert "--path=/home/me/a" in given and "--size=1500" in given


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_of_every_program(program):
    """Paths expand "~"; numbers have bounds and are finite; --usr_dir is there."""
    script = f"""
import importlib, sys
from absl import flags
from trainer.bin import cli

importlib.import_module({program!r})
defined = flags.FLAGS.flags_by_module_dict()
own = {{f.name: f for m, fs in defined.items() for f in fs if not m.startswith("absl")}}
assert "usr_dir" in own and len(own) > 1
sys.argv[1:] = []
flags.FLAGS(sys.argv)
for name, flag in own.items():
    path = name.endswith(("_dir", "_file", "_path", "_from", "_python", "_to_file"))
    path = path or name in ("file", "runs", "output")
    parsers = (cli._PathParser, cli._PathsParser)
    assert not path or isinstance(flag.parser, parsers), f"{{name}} is no path"
    if isinstance(flag.parser, flags.IntegerParser):
        bounds = flag.parser.lower_bound, flag.parser.upper_bound
        assert None not in bounds, f"{{name}} has no bounds"
    elif isinstance(flag.parser, flags.FloatParser):
        for value in ("nan", "inf", "-inf"):
            try:
                flags.FLAGS[name].value = float(value)
                flags.FLAGS._assert_validators(flag.validators)
            except flags.IllegalFlagValueError:
                continue
            raise AssertionError(f"{{name}} takes {{value}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "body, reason",
    [
        ("open('{folder}')", "{folder}: Is a directory"),
        ("open('{folder}/none/x', 'w')", "{folder}/none/x: No such file or directory"),
        ("open('{file}/x', 'w')", "{file}/x: Not a directory"),
        ("import os; os.rename('{file}', '{folder}')", "{file}: {folder}: "),
        ("open('/proc/none', 'w')", "/proc/none: "),
        ("sys.stdin.read()", "the input is not UTF-8 text: "),
        ("raise cli.UsageError('a\\n  b')", "a b\n"),
    ],
)
def test_an_error_of_the_system_is_one_line(tmp_path, body, reason):
    (tmp_path / "file").touch()
    names = {"folder": tmp_path, "file": tmp_path / "file"}
    status, out, err = call(body.format(**names), shell=r"printf '\xff' | {}")
    assert (status, out) == (1, "")
    assert err.startswith("error: " + reason.format(**names)), err
    assert err.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "shell, status, text",
    [
        ("{} | head -1; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("{} --help | true; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("{} >/dev/full", 1, "error: standard output: No space left on device\n"),
        ("{} --help >/dev/full", 1, "error: standard output: No space left "),
        ("{} >&-", 0, ""),
        ("{} 2>/dev/full >&2", 1, ""),
    ],
)
def test_an_output_that_takes_no_more(shell, status, text, unbuffered):
    body = "import time; time.sleep(0.2)\nfor i in range(50000): print('word', i)"
    found, _, err = call(body, shell=shell, PYTHONUNBUFFERED=unbuffered)
    assert found == status
    assert err.startswith(text) and (text or not err)


@pytest.mark.parametrize(
    "environment, shown",
    [
        ({"PYTHONIOENCODING": "ascii"}, r"\xe9 \u4e2d"),
        ({"PYTHONIOENCODING": "iso-8859-1"}, None),
        ({"LC_ALL": "C"}, "é 中"),
    ],
)
def test_text_in_and_out(environment, shown):
    body = (
        "line = sys.stdin.readline().strip()\n"
        "assert line == '\\u00e9 \\u4e2d'\n"
        "print(line)\n"
        "raise cli.UsageError(line)"
    )
    command = "printf '\\xc3\\xa9 \\xe4\\xb8\\xad\\n' | {} | iconv -f $FROM -t utf-8"
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    status, out, err = call(
        body, shell=f"set -o pipefail; {command}", FROM=encoding, **environment
    )
    assert status == 1
    assert out == f"{shown or 'é ' + chr(92) + 'u4e2d'}\n"
    if shown:
        assert err == f"error: {shown}\n"


def test_json_has_no_nan():
    value = {
        "a": [1.5, float("nan")],
        "b": (float("-inf"), "x"),
        "c": {"d": 1, "e": None},
    }
    assert json.loads(cli.json_text(value)) == {
        "a": [1.5, None],
        "b": [None, "x"],
        "c": {"d": 1, "e": None},
    }


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow says it"
)
def test_models_one_after_the_other_are_no_warning(caplog, monkeypatch):
    import tensorflow as tf

    def train_some(step):  # TensorFlow warns of one function twice
        for _ in range(9):
            tf.function(step)()

    logger = logging.getLogger("tensorflow")
    for name in ("absl", "tensorflow"):  # what follows is of this test alone
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    train_some(lambda: tf.constant(1))
    assert "retracing" in caplog.text, "or this test shows nothing"
    caplog.clear()
    cli.quieten()
    train_some(lambda: tf.constant(2))
    logger.warning("a warning")
    assert [record.getMessage() for record in caplog.records] == ["a warning"]
