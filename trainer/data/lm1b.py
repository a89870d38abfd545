"""The text of Google Billion Words: unpacked folder, archive, or TFDS' download."""

import pathlib
import shutil
import tarfile
import zlib

from trainer.errors import UsageError
from trainer.files import lock
from trainer.files import move
from trainer.files import partial_path
from trainer.files import removed_on_failure
from trainer.files import system_reason
from trainer.paths import named

FOLDER = "1-billion-word-language-modeling-benchmark-r13output"
SOURCES = ("auto", "folder", "archive", "tfds")
_PATTERNS = {
    "train": "training-monolingual.tokenized.shuffled/news.en-*",
    "dev": "heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050",
    "test": "heldout-monolingual.tokenized.shuffled/news.en.heldout-*",
}


def folder(tmp_dir: str | pathlib.Path, source: str = "auto") -> pathlib.Path:
    """Returns the folder of the unpacked archive.

    Args:
        tmp_dir: holds the folder, or the archive, or what TFDS downloads.
        source: "folder"; "archive", FOLDER.tar.gz, unpacked beside itself once;
            "tfds", which downloads the archive through TFDS' own lm1b builder; or
            "auto", the first of the two that is there.

    Raises:
        UsageError: the text is not there, or the archive is damaged.
    """
    tmp_dir = pathlib.Path(tmp_dir)
    if source == "tfds":
        return _from_tfds(tmp_dir)
    if not tmp_dir.is_dir():
        raise UsageError(f"tmp_dir={tmp_dir} is not a folder")
    found = tmp_dir if named(tmp_dir).name == FOLDER else tmp_dir / FOLDER
    archive = tmp_dir / f"{FOLDER}.tar.gz"
    if source != "archive" and found.is_dir():
        return found
    if source != "folder" and archive.is_file():
        busy = f"another et-datagen unpacks {archive}: wait for it"
        if not found.is_dir():
            with lock(tmp_dir / f"{FOLDER}.lock", busy):
                _unpack(archive, found)
        return found
    names = {"folder": f"folder {FOLDER}", "archive": f"{FOLDER}.tar.gz"}
    wanted = names.get(source, f"{names['folder']} and no {names['archive']}")
    raise UsageError(
        f"{tmp_dir} holds no {wanted}. source=tfds downloads it where there is a "
        "network"
    )


def files(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the text files of a split, sorted."""
    found = sorted(folder.glob(_PATTERNS[split]))
    if not found:
        raise UsageError(f"no file matches {folder / _PATTERNS[split]}")
    return found


def _unpack(archive, target):
    """Unpacks aside and renames: a part is never taken for the whole."""
    partial = partial_path(target)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with removed_on_failure(target, lambda: _unpacked_size(archive)):
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
                while tar.fileobj.read(1 << 20):  # to the end, where the checksum is
                    pass
            if not (partial / FOLDER).is_dir():
                raise UsageError(f"{archive} does not hold the folder {FOLDER}")
            move(partial / FOLDER, target)
            partial.rmdir()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UsageError(f"{archive} cannot be unpacked: {error}") from None
    except OSError as error:
        reason = system_reason(error)
        raise UsageError(f"{archive} cannot be unpacked: {reason}") from None


def _unpacked_size(archive):
    """Returns the size that the end of a .gz file names: that of the last 4 GiB."""
    with open(archive, "rb") as file:
        file.seek(-4, 2)
        return int.from_bytes(file.read(), "little")


def _from_tfds(tmp_dir):
    """Downloads and unpacks with TFDS, which checks the archive's checksum.

    Its text is read from the files, not from the records that TFDS would prepare:
    those hold the same lines in an order of their own, and take an hour to make.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            f"source=tfds needs the package tensorflow-datasets: {error}"
        ) from None
    builder = tfds.builder("lm1b", data_dir=str(tmp_dir))
    manager = tfds.download.DownloadManager(
        download_dir=str(tmp_dir / "downloads"),
        dataset_name="lm1b",
        url_infos=builder.url_infos,
    )
    try:
        generators = builder._split_generators(manager)
    except Exception as error:  # whatever its network code raises
        raise UsageError(
            f"TFDS could not download lm1b into {tmp_dir}: {error}. Download "
            f"{FOLDER}.tar.gz elsewhere and give its folder as tmp_dir"
        ) from None
    file = pathlib.Path(generators[0].gen_kwargs["files"][0])
    return file.parents[1]
