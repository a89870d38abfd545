import sys

from trainer import progress


def test_a_log_gets_a_line_now_and_then(capfd):
    """The first item, then one in `seconds`, and the last: not a bar's every state."""
    shown = progress.Progress(1000, start=10, label="et2", seconds=3600)
    for _ in range(990):
        shown.update(lambda rate: {"loss": "1.5", "tokens/s": f"{4 * rate:.0f}"})
    shown.close()
    shown.close()
    err = capfd.readouterr().err
    assert "\r" not in err
    first, last = err.splitlines()
    assert first.startswith("et2: step 11 of 1,000, loss=1.5, tokens/s=")
    assert last.startswith("et2: step 1,000 of 1,000, loss=1.5")
    assert last.endswith(", 00:00 left")


def test_lines_of_what_has_no_known_end(capfd):
    shown = progress.Progress(label="train", unit="sentence", seconds=0)
    for _ in "abc":
        shown.update()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"train: sentence {i}" for i in (1, 2, 3)
    ]
    assert all(line.endswith(" a second") for line in lines)


def test_a_terminal_gets_a_bar(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = progress.Progress(3, unit="step")
    for _ in range(3):
        shown.update(lambda rate: {"loss": "1.5"})
    progress.write("step 3: well")
    shown.close()
    err = capfd.readouterr().err
    assert "\r" in err and "3/3" in err and "loss=1.5" in err
    assert "step 3: well\n" in err
