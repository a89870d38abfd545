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


def test_items_are_counted_when_the_next_is_asked_for(capfd):
    items = progress.over(["a", "b", "c"], "dev", "batch", seconds=0)
    assert [next(items), next(items)] == ["a", "b"]
    items.close()  # as a loop that ends early does
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dev: batch 1 of 3, ")
    assert list(progress.over(iter("ab"), unit="line", seconds=0)) == ["a", "b"]
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["line 1", "line 2"]


def test_what_takes_long_is_told_in_seconds(capfd, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for seconds in progress.over([4.0, 6.0, 0.25], unit="turn", seconds=0):
        now[0] += seconds
    assert capfd.readouterr().err.splitlines() == [
        "turn 1 of 3, 4.0 seconds each",
        "turn 2 of 3, 6.0 seconds each, 00:06 left",
        "turn 3 of 3, 4 a second, 00:00 left",
    ]
