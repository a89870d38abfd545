"""Where the text of Google Billion Words is looked for."""

import pathlib

import pytest

from trainer.data import lm1b
from trainer.errors import UsageError


@pytest.mark.parametrize("tmp_dir", ["{folder}", "{folder}/..", ".", "heldout/.."])
def test_the_folder_is_found_from_within(tmp_path, monkeypatch, tmp_dir):
    folder = tmp_path / lm1b.FOLDER
    (folder / "heldout").mkdir(parents=True)
    monkeypatch.chdir(folder)
    found = lm1b.folder(tmp_dir.format(folder=folder))
    assert found.resolve() == folder
    with pytest.raises(UsageError, match="holds no folder 1-billion-word"):
        lm1b.folder(pathlib.Path(folder / "heldout"))
