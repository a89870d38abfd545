import json
import subprocess
import sys

from conftest import TESTDATA


def test_two_optimizers_and_a_second_run(tmp_path):
    command = [
        sys.executable,
        "-m",
        "trainer.experiments.memory_performance",
        "--preset=demo",
        f"--tmp_dir={TESTDATA}",
        f"--output_dir={tmp_path}",
        "--train_steps=3",
        "--optimizers=sgd,et2",
    ]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    table = first.stdout.splitlines()
    assert table[0].split()[:2] == ["optimizer", "c"]
    assert table[1].split()[0] == "sgd" and table[2].split()[0] == "et2"
    assert "(entropy of the text)" in table[3]
    assert (tmp_path / "perplexity_against_memory.png").stat().st_size > 10_000
    results = (tmp_path / "results.jsonl").read_text()
    assert [json.loads(r)["optimizer"] for r in results.splitlines()] == ["sgd", "et2"]

    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[:-1] == table[:-1]  # the samples, too
    assert len(table) == 4 + 1 + 1 + 3 + 1
    assert (tmp_path / "results.jsonl").read_text() == results
