"""Files that are whole or absent."""

import os


def write_atomically(path, write):
    """Calls `write(partial)` with a path beside `path`, then renames it.

    A kill in between leaves the old file, or none, under the final name. The
    suffix stays, for writers that choose a format by it.
    """
    write(partial_path(path))
    finish(path)


def partial_path(path):
    """Where a file is written before it has its name."""
    return path.with_name(f"partial-{path.name}")


def finish(path):
    """Gives a file that was written to `partial_path(path)` its name."""
    partial = partial_path(path)
    with open(partial, "rb") as file:  # on the disk before it has its name
        os.fsync(file.fileno())
    os.replace(partial, path)
