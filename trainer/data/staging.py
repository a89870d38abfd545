"""Where a data set is made: aside, so that an older one stays until that is whole.

The folder PROBLEM.unfinished holds the files of the new data set under their final
names, and progress.json, which says from what they are made and which splits are
finished. An interrupted run goes on from there, if its text and settings are the same.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator

from trainer import files
from trainer.data import dataset
from trainer.errors import UsageError


class Staging:
    """Makes a data set aside and puts it in place; `opened` gives one.

    Args:
        paths: the final paths of the data set.
        origin: a JSON object of all that the data set follows from.
    """

    def __init__(self, paths: dataset.Paths, origin: dict):
        self._final = paths
        self.paths = dataset.Paths(paths.unfinished, paths.problem)
        self.folder = paths.unfinished
        self._progress = self.folder / "progress.json"
        self._origin = origin
        self._splits = {}
        self.published: dataset.Description | None = None

    def start(self):
        """Takes up the work of an interrupted run, or makes an empty folder.

        A run that was interrupted while its files took their final places has made
        a whole data set: that is put in place first. If it is the one that is to be
        made, `published` is its description from then on, and nothing is left to do.
        """
        same = self._read_progress()
        if self.is_whole():
            self._put_in_place()
            if same:
                self.published = dataset.read_description(self._final.description)
        elif same and self._has_files():
            return
        elif same:  # the run ended while this folder, whose files had gone, was deleted
            self.published = self._in_place()
        self._splits = {}
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        if self.published is None:
            files.make_folder(self.folder)
            self._write_progress()

    def is_whole(self) -> bool:
        """Returns whether all files of the data set are made, but not all in place."""
        return self.paths.description.is_file()

    def finished(self, split: str) -> dataset.Split | None:
        """Returns the counts of a split if its rows are finished."""
        return self._splits.get(split)

    def finish(self, split: str, counts: dataset.Split):
        """Records that the rows of a split are finished."""
        self._splits[split] = counts
        self._write_progress()

    def _read_progress(self):
        """Takes over the finished splits. Returns False if they are of other text."""
        try:
            found = json.loads(self._progress.read_text())
            splits = found["splits"].items()
            finished = {name: dataset.split_of(value) for name, value in splits}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # there is no such file, or a damaged one
        if found["origin"] != self._origin:
            return False
        self._splits = finished
        return True

    def _has_files(self):
        """Returns whether all of the finished splits is in the folder."""
        made = [
            self.paths.rows(split, length)
            for split, counts in self._splits.items()
            for length in counts.rows
        ]
        return all(p.is_file() for p in ([self.paths.tokenizer, *made] if made else []))

    def _in_place(self):
        """Returns the description in the final place if the finished splits are its."""
        with contextlib.suppress(UsageError, FileNotFoundError):
            found = dataset.read_description(self._final.description)
            return found if found.splits == self._splits else None

    def _write_progress(self):
        splits = {name: dataclasses.asdict(s) for name, s in self._splits.items()}
        files.write_json(self._progress, {"origin": self._origin, "splits": splits})

    def publish(self, description: dataset.Description):
        """Puts the data set, which is whole, in the place of an older one."""
        dataset.write_description(self.paths.description, description)
        self._put_in_place()

    def _put_in_place(self):
        # From here to the last rename no description stands in the final place: rows
        # of one data set are never read under the description of another.
        data_dir = self._final.description.parent
        self._delete_old()
        for file in sorted(self.folder.iterdir()):
            if file not in (self.paths.description, self._progress):
                file.replace(data_dir / file.name)
        files.sync(data_dir)  # a loss of power does not change the order
        files.move(self.paths.description, self._final.description)
        shutil.rmtree(self.folder)

    def _delete_old(self):
        """Deletes an older data set: its description first, then all of its rows."""
        with contextlib.suppress(UsageError, FileNotFoundError):
            old = dataset.read_description(self._final.description)
            self._final.description.unlink()
            files.sync(self._final.description.parent)
            for split, counts in old.splits.items():
                for length in counts.rows:
                    self._final.rows(split, length).unlink(missing_ok=True)
        self._final.description.unlink(missing_ok=True)  # one that is damaged


@contextlib.contextmanager
def opened(
    data_dir: str | pathlib.Path, problem: str, origin: dict
) -> Iterator[Staging]:
    """Gives the `Staging` of a data set, for a block that makes and publishes it.

    If the block fails, the work that is finished stays for the next run, but for bad
    input (`UsageError`) or where no vocabulary is finished: then nothing is left.

    Raises:
        UsageError: the folder cannot be written to, or another process makes this
            data set there.
    """
    data_dir = pathlib.Path(data_dir)
    new_folder = not data_dir.exists()
    paths = dataset.Paths(data_dir, problem)
    staging = Staging(paths, origin)
    busy = f"another et-datagen is busy with {problem} in {data_dir}: wait for it"
    try:
        with contextlib.ExitStack() as stack:
            try:
                files.make_folder(data_dir)
                stack.enter_context(files.lock(paths.lock, busy))
                stack.enter_context(_cleared_on_failure(staging))
                staging.start()
            except OSError as error:
                raise UsageError(
                    f"data_dir={data_dir} cannot be written to: {error.strerror}"
                ) from None
            yield staging
    except BaseException:
        if new_folder:
            with contextlib.suppress(OSError):  # it holds files
                data_dir.rmdir()
        raise


@contextlib.contextmanager
def _cleared_on_failure(staging):
    try:
        yield
    except BaseException as error:
        begun = staging.paths.tokenizer.is_file() and not isinstance(error, UsageError)
        if not begun and not staging.is_whole():
            shutil.rmtree(staging.folder, ignore_errors=True)
        raise
