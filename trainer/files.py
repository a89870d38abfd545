"""Files that are whole or absent."""

import os


def write_atomically(path, write):
    """Calls `write(partial)` with a path beside `path`, then renames it.

    A kill in between leaves the old file, or none, under the final name. The
    suffix stays, for writers that choose a format by it.
    """
    partial = path.with_name(f"partial-{path.name}")
    write(partial)
    with open(partial, "rb") as file:  # on the disk before it has its name
        os.fsync(file.fileno())
    os.replace(partial, path)
