"""The binaries as a stranger uses them: in a process of their own."""

import json
import os
import re
import subprocess
import sys

import pytest

from conftest import PROBLEM
from testdata.generate import DEV
from testdata.generate import FOLDER

TRAIN = "--hparams_set=transformer_tiny --hparams=batch_size=256"


def call(binary, *arguments, stdin=""):
    process = subprocess.run(
        [sys.executable, "-m", f"trainer.bin.{binary}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "default"},
    )
    return process.returncode, process.stdout, process.stderr


def flags_in(text):
    return set(re.findall(r"^  --(\w+)", text, re.MULTILINE))


@pytest.mark.parametrize(
    "binary",
    [
        "et_datagen",
        "et_trainer",
        "et_eval",
        "et_decoder",
        "et_exporter",
        "et_plan",
        "et_avg",
        "et_sweep",
    ],
)
def test_help_is_complete_and_light(binary):
    status, out, _ = call(binary, "--help")
    assert status == 0
    assert out.startswith(binary.replace("_", "-") + ":")
    lines = out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80  # a terminal's screen
    shown = flags_in(out)
    _, full, _ = call(binary, "--helpfull")
    every = flags_in(full)
    assert "usr_dir" in shown and shown <= every
    hidden = len(every) - len(shown)
    assert (f"{hidden} more that are seldom needed" in out) == bool(hidden)
    light = (
        f"import sys, trainer.bin.{binary}; "
        "sys.exit(bool({'keras', 'tensorflow', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", light]).returncode == 0


@pytest.mark.parametrize(
    "binary, arguments, message",
    [
        ("et_datagen", "", "--problem, --data_dir, --tmp_dir must be given"),
        (
            "et_datagen",
            "--problem=ptb --data_dir=d --tmp_dir=t",
            "unknown problem 'ptb'. Known: languagemodel_lm1b2k, ",
        ),
        (
            "et_datagen",
            "--problem={problem} --data_dir={tmp}/d --tmp_dir={tmp}/none",
            "none is not a folder",
        ),
        (
            "et_trainer",
            "--problm=x",
            "unknown flag '--problm'. Did you mean --problem? See --helpfull.",
        ),
        ("et_plan", "--zzz", "unknown flag '--zzz'. See --helpfull."),
        (
            "et_trainer",
            "--hparams=hiden_size=8 --print_hparams",
            "unknown hparam 'hiden_size'. Did you mean hidden_size? Known: num_hidden",
        ),
        (
            "et_trainer",
            "--hparams_set=transformerbase --print_hparams",
            "unknown hparams set 'transformerbase'. Did you mean transformer_base",
        ),
        ("et_trainer", "train", "unexpected argument 'train'"),
        ("et_trainer", "--train_steps=many", "--train_steps"),
        (
            "et_trainer",
            "--problem={problem} --data_dir={tmp}/none --output_dir={tmp}/run",
            "none is not a folder",
        ),
        (
            "et_trainer",
            "--problem={problem} --data_dir={data} --output_dir={tmp}/run "
            "--hparams=batch_size=large",
            "hparam batch_size must be a whole number",
        ),
        (
            "et_trainer",
            "--problem={problem} --data_dir={data} --output_dir={tmp}/run "
            "--hparams=batch_size=16",
            "smaller than one row of 32",
        ),
        (
            "et_trainer",
            "--problem={problem} --data_dir={data} --output_dir={tmp}/run "
            "--hparams=optimizer=et9",
            "unknown optimizer 'et9'",
        ),
        ("et_trainer", "--usr_dir={tmp}/none --registry_help", "holds no Python file"),
        ("et_avg", "--output_dir={tmp}", "holds no run"),
        (
            "et_eval",
            "--data_dir={data} --output_dir={tmp}",
            "holds no run",
        ),
        ("et_eval", "--output_dir={tmp}", "holds no run"),
        ("et_decoder", "--output_dir={tmp} --data_dir={data}", "holds no run"),
        (
            "et_decoder",
            "--output_dir={tmp} --data_dir={data} --decode_from_file={tmp}/none",
            "none cannot be read: No such file",
        ),
        (
            "et_decoder",
            "--output_dir={tmp} --data_dir={data} --top_p=1.5",
            "--top_p=1.5: must be a number, above 0 and at most 1",
        ),
        (
            "et_decoder",
            "--output_dir={tmp} --data_dir={data} --beam_size=2 --num_samples=3",
            "--num_samples=3 needs --beam_size of as much or more. Got 2",
        ),
        (
            "et_decoder",
            "--output_dir={tmp} --beam_size=2 --temperature=1 --top_k=4 --top_p=1 "
            "--random_seed=0",
            "--temperature, --top_k, --top_p, --random_seed cannot be given with --b",
        ),
        (
            "et_decoder",
            "--output_dir={tmp} --alpha=0.6",
            "--alpha cannot be given without --beam_size",
        ),
        (
            "et_decoder",
            "--output_dir={tmp} --temperature=0 --top_k=5 --num_samples=2",
            "--top_k, --num_samples cannot be given with --temperature=0: it takes",
        ),
        (
            "et_decoder",
            "--output_dir={tmp} --decode_interactive --decode_from_file=- "
            "--decode_to_file={tmp}/out",
            "--decode_from_file, --decode_to_file cannot be given with --decode_inter",
        ),
        (
            "et_eval",
            "--output_dir={tmp} --score_file=- --data_dir={data} --problem={problem} "
            "--split=dev --eval_steps=1",
            "--data_dir, --problem, --split, --eval_steps cannot be given with --score",
        ),
        ("et_exporter", "--output_dir={tmp}", "--export_dir must be given"),
        (
            "et_exporter",
            "--output_dir={tmp} --export_dir={tmp}/e --eval_splits=dev --eval_steps=1",
            "--eval_splits, --eval_steps cannot be given without --data_dir",
        ),
        (
            "et_exporter",
            "--output_dir={tmp} --data_dir={data} --export_dir={tmp}/e",
            "holds no run",
        ),
        (
            "et_trainer",
            "--problem={problem} --data_dir={data} --output_dir={tmp}/run --profile=5",
            "--profile=5 is not FIRST,LAST",
        ),
        (
            "et_trainer",
            "--problem={problem} --data_dir={data} --output_dir={tmp}/run "
            "--profile=8,10 --train_steps=9",
            "--profile=8,10 lies past the end, --train_steps=9: choose LAST <= 9",
        ),
        (
            "et_trainer",
            "--problem={problem} --data_dir={data} --output_dir={tmp}/run "
            "--model_devices=2 --train_steps=1",
            "--model_devices=2 says how many devices share one model: give --strat",
        ),
        (
            "et_trainer",
            "--problem={problem} --data_dir={data} --output_dir={tmp}/run --check "
            "--profile=5,6",
            "--profile cannot be given with --check",
        ),
        ("et_sweep", "--study=a/b", "--study=a/b names a file: give a word, without /"),
        ("et_sweep", "--study=", "--study= names a file"),
        (
            "et_sweep",
            "--problem={problem} --data_dir={data} --output_dir={tmp}/sweep "
            "--hparams_range=batch_size=2.5:4",
            "range 'batch_size=2.5:4' is not NAME=A|B|..., NAME=LOW:HIGH",
        ),
        (
            "et_sweep",
            "--problem={problem} --data_dir={data} --output_dir={tmp}/sweep "
            "--hparams_range=batch_size=16|256",
            "batch_size=16 of batch_size=16|256 cannot be trained: ",
        ),
    ],
)
def test_bad_input_is_one_clear_line(data_dir, tmp_path, binary, arguments, message):
    values = {"problem": PROBLEM, "data": data_dir, "tmp": tmp_path}
    status, out, err = call(binary, *arguments.format(**values).split())
    assert status == 1
    assert out == ""
    assert message in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_check_leaves_nothing_behind(data_dir, tmp_path):
    status, out, err = call(
        "et_trainer",
        f"--problem={PROBLEM}",
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path / 'run'}",
        *f"{TRAIN},optimizer=adam".split(),
        "--check",
    )
    assert status == 0, err
    for word in ("parameters", "optimizer state", "GB at the peak", "hours", "disk"):
        assert word in out
    assert re.search(
        r"paper's 500,000 steps .*: base .* h, doubled .* h, big .* h", out
    )
    assert out.splitlines()[-1].endswith("all is well")
    assert not list(tmp_path.iterdir())


def test_registry_and_hparams_are_printed(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from trainer import registry\nfrom trainer.hparams import HParams\n"
        "@registry.hparams_sets.register\n"
        "def my_transformer(): return HParams(hidden_size=64)\n"
    )
    status, out, err = call("et_trainer", f"--usr_dir={tmp_path}", "--registry_help")
    assert status == 0, err
    for name in ("my_transformer", "text_lines8k_packed", "et2_rank1", "cosine"):
        assert f"  {name}\n" in out
    status, out, _ = call(
        "et_trainer",
        f"--usr_dir={tmp_path}",
        "--hparams_set=my_transformer",
        "--hparams=batch_size=99",
        "--print_hparams",
    )
    assert status == 0
    assert "hidden_size=64\n" in out and "batch_size=99\n" in out


def test_train_continue_evaluate(data_dir, tmp_path):
    train = [
        f"--problem={PROBLEM}",
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path}",
        "--hparams_set=transformer_tiny",
        "--hparams=num_hidden_layers=1,batch_size=256,learning_rate_warmup_steps=10",
    ]
    status, out, err = call("et_trainer", *train, "--train_steps=3")
    assert status == 0, err
    assert "perplexity per word" in out and "model-3.keras" in out
    assert "tokens/s" in err and "loss=" in err
    status, out, err = call("et_trainer", *train, "--train_steps=4")
    assert status == 0, err
    assert "step 4, optimizer et2" in out
    status, out, err = call(
        "et_eval", f"--data_dir={data_dir}", f"--output_dir={tmp_path}", "--json"
    )
    assert status == 0, err
    figures = json.loads(out)
    assert figures["sentences"] == 200
    assert "dev: batch 1 of " in err
    assert 0 < figures["accuracy"] < 1
    use_what_was_trained(data_dir, tmp_path, figures)


def use_what_was_trained(data_dir, tmp_path, figures):
    """Score, decode and export, in the run's folder to save time."""
    run = [f"--output_dir={tmp_path}"]
    text = data_dir / "text" / FOLDER / DEV
    status, out, err = call("et_eval", *run, f"--score_file={text}", "--json")
    assert status == 0, err
    *lines, corpus = map(json.loads, out.splitlines())
    assert [line["line"] for line in lines] == list(range(1, 201))
    assert corpus["line"] == "corpus"
    for count in ("sentences", "words", "bytes", "tokens"):
        assert corpus[count] == figures[count] == sum(line[count] for line in lines)
    assert corpus["nats"] == pytest.approx(sum(line["nats"] for line in lines))
    long_lines = sum(line["windows"] > 1 for line in lines)
    assert f"{long_lines} lines have more than 32 tokens" in err
    assert "line 200, " in err

    status, out, err = call("et_eval", *run, "--score_file=-", stdin="ti .\n\nbo\n")
    assert status == 0, err
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert header[:2] == ["line", "nats"]
    assert [row[0] for row in rows] == ["1", "3", "corpus"]
    total = float(rows[0][1]) + float(rows[1][1])  # of numbers of four decimals
    assert float(rows[2][1]) == pytest.approx(total, abs=2e-4)
    status, _, err = call("et_eval", *run, "--score_file=-", stdin=" \n")
    assert (status, err.splitlines()[-1]) == (
        1,
        "error: --score_file=- holds no text",
    )
    status, _, err = call("et_decoder", *run)
    assert (status, err) == (1, "error: --decode_from_file=- holds no line\n")

    decode = ["et_decoder", *run, "--decode_length=6", "--batch_size=4"]
    prompts = "ti bo\n\nzu\n"
    status, out, err = call(*decode, "--num_samples=2", "--json", stdin=prompts)
    assert status == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["prompt"] for a in answers] == ["ti bo"] * 2 + [""] * 2 + ["zu"] * 2
    assert all(1 <= a["tokens"] <= 6 for a in answers)
    assert "6 continuations" in err and "tokens/s" in err
    file = tmp_path / "decoded.txt"
    status, out, err = call(
        *decode, "--beam_size=2", f"--decode_to_file={file}", stdin=prompts
    )
    assert (status, out) == (0, ""), err
    assert [
        line.startswith(p)
        for line, p in zip(file.read_text().splitlines(), ("ti bo", "", "zu"))
    ] == [True] * 3
    # The second prompt is of another width than the first.
    long = "bo " * 20
    status, out, err = call(*decode, "--decode_interactive", stdin=f"ti\n{long}\nzu\n")
    assert status == 0, err
    assert "> ti" in out and f"> {long.strip()}" in out and "> zu" in out
    status, out, err = call(*decode, stdin="ti .\n" + "bo " * 40)
    assert status == 1 and "the prompt in line 2 has" in err and out == ""

    export = ["et_exporter", *run, f"--export_dir={tmp_path / 'lm' / '1'}"]
    status, out, err = call(
        *export, f"--data_dir={data_dir}", "--eval_splits=dev,test", "--eval_steps=1"
    )
    assert status == 0, err
    assert "saved_model" in out
    assert "test: batch 1 of 1, " in err
    card = (tmp_path / "lm" / "1" / "README.md").read_text()
    assert "| test |" in card and "et_exporter" in card
    status, out, err = call(*export)
    assert status == 1 and "is there already: name a new folder" in err
    new = [*export[:2], f"--export_dir={tmp_path / 'new'}", f"--data_dir={data_dir}"]
    status, out, err = call(*new, "--eval_splits=dev,tset")
    assert status == 1 and "holds no tset split" in err
    assert "dev: batch" not in err and not (tmp_path / "new").exists()


def test_sweep_with_two_workers_goes_on(data_dir, tmp_path):
    study = [
        "et_sweep",
        f"--problem={PROBLEM}",
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path}",
        *f"{TRAIN},optimizer=sgd".split(),
        "--hparams_range=learning_rate_constant=0.01:1:log",
        "--train_steps=2",
    ]
    status, out, err = call(*study, "--trials=2", "--workers=2")
    assert status == 0, err
    trials = (tmp_path / "sweep.jsonl").read_text().splitlines()
    best = min(json.loads(trial)["value"] for trial in trials)
    assert len(trials) >= 2 and f"{best:.4f} nats per token" in out
    assert out.splitlines()[-1].startswith("--hparams=learning_rate_constant=0.")
    status, again, err = call(*study, "--trials=2")
    assert (status, again) == (0, out), err


def test_figures_of_a_sweep_without_a_best_trial(data_dir, tmp_path):
    """Here no trial can be trained: what is said of them stays."""
    status, out, err = call(
        "et_sweep",
        f"--problem={PROBLEM}",
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path}",
        *f"{TRAIN},optimizer=adam,optimizer_state_budget=64KB".split(),
        "--hparams_range=learning_rate_constant=0.01:1:log",
        "--trials=2",
    )
    assert (status, out) == (1, "")
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: none of the 2 trials of 'sweep' ended with a finite")
    trials = [*map(json.loads, (tmp_path / "sweep.jsonl").read_text().splitlines())]
    assert [trial["state"] for trial in trials] == ["PRUNED"] * 2
    for trial in trials:
        assert "is for ET optimizers" in trial["reason"]
        assert f"({trial['reason']})" in err and trial["reason"] in last


def test_a_worker_that_fails_is_told_of(data_dir, tmp_path):
    """The trials go on without it, and what they found is said."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text(
        "import os, sys\nif '--worker=1' in sys.argv: os._exit(3)\n"
    )
    status, out, err = call(
        "et_sweep",
        f"--usr_dir={tmp_path / 'mine'}",
        f"--problem={PROBLEM}",
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path}",
        *f"{TRAIN},optimizer=sgd,num_hidden_layers=1".split(),
        "--hparams_range=learning_rate_constant=0.01:1:log",
        "--train_steps=1",
        "--trials=1",
        "--workers=2",
    )
    assert status == 1
    assert err.splitlines()[-1] == "worker 1 ended with status 3: the others went on"
    assert out.startswith("best of 1 trials: trial 0, complete: ")
