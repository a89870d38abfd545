"""Copies of a run that tests may break, and what is in their folders."""

import shutil


def copied(trained, folder):
    """Returns a copy, in a folder, of the folder of a run, with two checkpoints."""
    copy = folder / "run"
    shutil.copytree(trained.path.parents[1], copy)
    path = copy / "checkpoints" / trained.path.name
    shutil.copy(path, path.with_name("model-59.keras"))
    return copy


def contents(folder):
    """Returns {path: bytes} of all files in a folder."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
