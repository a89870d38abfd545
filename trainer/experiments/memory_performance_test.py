import json
import subprocess
import sys

import pytest

from conftest import TESTDATA


def command_in(folder):
    return [
        sys.executable,
        "-m",
        "trainer.experiments.memory_performance",
        "--scale=smoke",
        f"--tmp_dir={TESTDATA}",
        f"--output_dir={folder}",
        "--train_steps=3",
        "--trials=1",  # experiments_test.py tunes
        "--hparams=num_hidden_layers=1,batch_size=512",
    ]


def test_two_optimizers_and_a_second_run(tmp_path):
    command = command_in(tmp_path)
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    table = first.stdout.splitlines()
    assert table[0].startswith("| optimizer | c | state scalars |")
    assert table[2].startswith("| sgd |") and table[3].startswith("| et2 |")
    assert "±" in table[3] and "entropy of the text" in table[4]
    for name in ("perplexity", "curves"):
        for suffix in (".png", ".svg"):
            assert (tmp_path / f"{name}{suffix}").stat().st_size > 10_000
    results = (tmp_path / "results.jsonl").read_text()
    found = [json.loads(line) for line in results.splitlines()]
    assert [(r["name"], r["seed"]) for r in found] == [
        ("sgd", 0),
        ("sgd", 1),
        ("et2", 0),
        ("et2", 1),
    ]
    assert table[:5] == (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 5 + 1 + 1  # plots, total

    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[:-1] == table[:-1]
    assert (tmp_path / "results.jsonl").read_text() == results


@pytest.mark.slow
def test_sentences_are_drawn_from_the_last_model(tmp_path):
    done = subprocess.run(
        [*command_in(tmp_path), "--scale=demo", "--entries=sgd"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert table[5] == "sampled with sgd:" and len(table) == 4 + 1 + 1 + 3 + 1
