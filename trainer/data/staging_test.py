import contextlib
import itertools
import os
import pathlib
import shutil

import pytest

from trainer.data import dataset
from trainer.data import staging


def make(data_dir, origin, interrupted=None):
    """Makes a data set whose files hold its origin; returns its description."""
    with staging.opened(data_dir, "p", {"from": origin}) as staged:
        if staged.published:
            return staged.published
        if interrupted == "making":
            raise KeyboardInterrupt
        staged.paths.tokenizer.write_text(origin)
        counts = staged.finished("dev")
        if not counts:
            counts = dataset.Split(1, 1, 2, 2, {len(origin): 1})
            staged.paths.rows("dev", len(origin)).write_text(origin)
            staged.finish("dev", counts)
        if interrupted == "finishing":
            raise KeyboardInterrupt
        staged.publish(
            dataset.Description("p", 9, len(origin), True, "0", {"dev": counts})
        )


def check(data_dir, origin):
    """The folder holds the data set of `origin` and nothing else."""
    assert dataset.load_description(data_dir, "p").max_length == len(origin)
    paths = dataset.Paths(data_dir, "p")
    files = {paths.tokenizer, paths.rows("dev", len(origin))}
    assert {file.read_text() for file in files} == {origin}
    assert set(pathlib.Path(data_dir).iterdir()) == files | {paths.description}


def test_a_new_data_set_takes_the_place_of_an_old_one(tmp_path):
    make(tmp_path, "old")
    make(tmp_path, "newer")
    check(tmp_path, "newer")


def test_an_interruption_leaves_the_old_data_set(tmp_path):
    make(tmp_path, "old")
    for interrupted in ("making", "finishing"):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, "newer", interrupted)
        assert dataset.load_description(tmp_path, "p").max_length == 3
        assert dataset.Paths(tmp_path, "p").tokenizer.read_text() == "old"
    make(tmp_path, "newer")
    check(tmp_path, "newer")


def test_nothing_is_left_of_a_folder_that_was_new(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "data", "x", "making")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("damaged", ["", "[]", '{"origin": {"from": "x"}}'])
def test_a_damaged_record_of_progress_starts_anew(tmp_path, damaged):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "x", "finishing")
    (tmp_path / "p.unfinished" / "progress.json").write_text(damaged)
    with staging.opened(tmp_path, "p", {"from": "x"}) as staged:
        assert staged.finished("dev") is None
        assert not staged.paths.tokenizer.exists()


@contextlib.contextmanager
def ended(monkeypatch, moment):
    """Ends a block at one of the three renames into final places, or after them all."""
    calls, replace = itertools.count(), os.replace

    def replace_some(path, target):
        if path.parent != target.parent and next(calls) == moment:
            raise KeyboardInterrupt
        return replace(path, target)

    def delete_nothing(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace_some)
        patch.setattr(shutil, "rmtree", delete_nothing)
        yield


@pytest.mark.parametrize("moment", range(4))
def test_an_end_while_files_take_their_places(tmp_path, monkeypatch, moment):
    """The next run, though it makes another data set, first ends what was begun."""
    make(tmp_path, "old")
    with ended(monkeypatch, moment):
        make(tmp_path, "newer")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "another", "making")
    check(tmp_path, "newer")


@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("old", [True, False])
def test_what_was_made_is_not_made_again(tmp_path, monkeypatch, moment, old):
    """The same run after such an end has renames to do at most."""
    if old:
        make(tmp_path, "old")
    with ended(monkeypatch, moment):
        make(tmp_path, "newer")
    assert make(tmp_path, "newer", "making").max_length == 5
    check(tmp_path, "newer")
    with pytest.raises(KeyboardInterrupt):  # once it is in place it can be made anew
        make(tmp_path, "newer", "making")


def test_rows_that_are_lost_are_made_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "x", "finishing")
    dataset.Paths(tmp_path / "p.unfinished", "p").rows("dev", 1).unlink()
    make(tmp_path, "x")
    check(tmp_path, "x")
