import collections
import contextlib
import dataclasses
import resource
import shutil
import tarfile

import pytest

from conftest import PROBLEM
from testdata.generate import DEV
from testdata.generate import FOLDER
from testdata.generate import TRAIN
from trainer import registry
from trainer.data import batches
from trainer.data import datagen
from trainer.data import dataset
from trainer.data import staging
from trainer.data import tokenizer
from trainer.data import vocabulary
from trainer.errors import UsageError


def write_text(root, train, dev="ti .\n"):
    for name, text in ((TRAIN.format(1), train), (DEV, dev)):
        path = root / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def sentences_of(path):
    return path.read_text().splitlines()


def test_rows_hold_exactly_the_text(data_dir):
    description = dataset.load_description(data_dir, PROBLEM)
    paths = dataset.Paths(data_dir, PROBLEM)
    processor = tokenizer.load(paths.tokenizer)
    text = data_dir / "text" / FOLDER / DEV
    (source,) = batches.buckets(data_dir, description, "dev")
    decoded, words, size, tokens = [], 0, 0, 0
    for header, ids in zip(*source.rows(range(len(source)))):
        words, size = words + header[0], size + header[1]
        tokens += int((ids != 0).sum())
        sentence = []
        for token in ids[ids != 0].tolist():
            sentence.append(token)
            if token == tokenizer.EOS_ID:
                decoded.append(processor.decode(sentence[:-1]))
                sentence = []
        assert not sentence or len(sentence) == description.max_length
    # Sentences of more than 32 tokens come in segments; the others are whole.
    assert set(decoded) - set(sentences_of(text)) == set(decoded) - set(
        s for s in sentences_of(text) if len(processor.encode(s)) < 32
    )
    split = description.splits["dev"]
    assert (split.words, split.bytes, split.tokens) == (words, size, tokens)
    assert split.sentences == len(decoded) == 200
    assert split.bytes == text.stat().st_size
    assert split.words == len(text.read_text().split())
    assert description.efficiency("train") > 0.93


def test_the_same_text_gives_the_same_bytes(data_dir, tmp_path):
    problem = registry.problems.get(PROBLEM)
    seen = collections.Counter()

    def bar(split, sequences):
        """Sees encoded sentences: the work that a speed is measured of is done."""
        for ids, counts in sequences:
            seen.update({f"{split} sentences": counts.sentences, split: len(ids)})
            yield ids, counts

    made = datagen.generate(problem, data_dir / "text", tmp_path, 32, bar=bar)
    for split, counts in made.splits.items():
        assert seen[f"{split} sentences"] == counts.sentences
        assert seen[split] == counts.tokens
    for name in (
        f"{PROBLEM}.model",
        f"{PROBLEM}.json",
        f"{PROBLEM}-dev-32.array_record",
    ):
        assert (tmp_path / name).read_bytes() == (data_dir / name).read_bytes()


FILES = [f"{PROBLEM}{end}" for end in (".model", ".json", "-train-32.array_record")]


@pytest.fixture(scope="module")
def archive(data_dir, tmp_path_factory):
    """The text in the original archive's form: the .tar.gz alone."""
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(folder / f"{FOLDER}.tar.gz", "w:gz") as tar:
        tar.add(data_dir / "text" / FOLDER, FOLDER)
    return folder


@pytest.mark.parametrize("source", ["auto", "archive", "tfds"])
def test_every_source_gives_the_same_bytes(
    data_dir, archive, tmp_path, monkeypatch, source
):
    """TFDS' own lm1b builder, its manager unpacking without a network."""
    if source == "tfds":
        tfds = pytest.importorskip("tensorflow_datasets")
        pytest.importorskip("tensorflow")

        def download_and_extract(self, url):
            assert url.endswith(f"{FOLDER}.tar.gz")
            with tarfile.open(archive / f"{FOLDER}.tar.gz") as tar:
                tar.extractall(tmp_path / "tfds", filter="data")
            return tmp_path / "tfds"

        monkeypatch.setattr(
            tfds.download.DownloadManager, "download_and_extract", download_and_extract
        )
    datagen.generate(
        registry.problems.get(PROBLEM),
        archive,
        tmp_path,
        max_length=32,
        source=source,
    )
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (data_dir / name).read_bytes()
    assert not list(tmp_path.glob("*progress*"))


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_archive(archive, tmp_path, damage):
    whole = bytearray((archive / f"{FOLDER}.tar.gz").read_bytes())
    middle = len(whole) // 2
    if damage == "truncated":
        whole = whole[:middle]
    else:
        whole[middle : middle + 9] = bytes(9)
    (tmp_path / f"{FOLDER}.tar.gz").write_bytes(whole)
    with pytest.raises(UsageError, match="cannot be unpacked"):
        datagen.generate(registry.problems.get(PROBLEM), tmp_path, tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == [f"{FOLDER}.tar.gz"]


class Interruption(Exception):
    pass


def interrupted_at(split, started):
    """A `bar` that ends the run at a split, and notes the splits before."""

    def bar(name, sentences):
        started.append(name)
        if name == split:
            raise Interruption
        return sentences

    return bar


def test_an_interrupted_run_goes_on(data_dir, tmp_path, monkeypatch):
    arguments = registry.problems.get(PROBLEM), data_dir / "text", tmp_path, 32
    started = []
    with pytest.raises(Interruption):
        datagen.generate(*arguments, bar=interrupted_at("dev", started))
    with pytest.raises(UsageError, match="no complete data"):
        dataset.load_description(tmp_path, PROBLEM)
    monkeypatch.setattr(vocabulary, "train", None)  # it must not be trained again
    datagen.generate(*arguments, bar=interrupted_at(None, started))
    assert started == ["train", "dev", "dev", "test"]
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (data_dir / name).read_bytes()


def test_a_data_set_that_is_whole_is_put_in_place_alone(
    data_dir, tmp_path, monkeypatch
):
    arguments = registry.problems.get(PROBLEM), data_dir / "text", tmp_path, 32
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(staging.Staging, "_put_in_place", None)
        datagen.generate(*arguments)
    for work in ("_vocabulary", "_split"):
        monkeypatch.setattr(datagen, work, None)
    description = datagen.generate(*arguments)
    assert description == dataset.load_description(data_dir, PROBLEM)
    found = contents(tmp_path)
    assert set(found) == {p.name for p in data_dir.iterdir()} - {"text"}
    for name in FILES:
        assert found[name] == (data_dir / name).read_bytes()


@pytest.fixture
def old(data_dir, tmp_path):
    """A data set from two sentences, and the bytes of all of its files."""
    problem = registry.problems.get(PROBLEM)
    write_text(tmp_path / "old", "ti bo .\nzu .\n")
    datagen.generate(problem, tmp_path / "old", tmp_path / "data", 16)
    return contents(tmp_path / "data")


@contextlib.contextmanager
def small_files(limit):
    """Writing more to a file than `limit` bytes fails, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("failure", ["interruption", "text", "vocabulary", "disk"])
def test_a_failure_leaves_the_old_data_set(data_dir, old, tmp_path, failure):
    problem, text = registry.problems.get(PROBLEM), data_dir / "text"
    bar, error = None, UsageError
    if failure == "interruption":
        bar, error = interrupted_at("test", []), Interruption
    elif failure == "text":
        text = tmp_path / "text"
        write_text(text, "ti bo .\n")
        (text / FOLDER / DEV).write_bytes(b"ti .\nzu\xff\n")
    elif failure == "vocabulary":
        problem = dataclasses.replace(problem, vocab_size=99)
    else:
        error = OSError
    with pytest.raises(error), small_files(50_000 if failure == "disk" else -1):
        datagen.generate(problem, text, tmp_path / "data", 32, bar=bar)
    unfinished = tmp_path / "data" / f"{PROBLEM}.unfinished"
    if error is UsageError:
        assert not unfinished.exists()
    else:  # kept for the next run
        assert not list(unfinished.glob("partial-*"))
        shutil.rmtree(unfinished)
    assert contents(tmp_path / "data") == old
    assert dataset.load_description(tmp_path / "data", PROBLEM).max_length == 16


def test_a_new_data_set_takes_the_place_of_the_old(data_dir, old, tmp_path):
    problem = registry.problems.get(PROBLEM)
    datagen.generate(problem, data_dir / "text", tmp_path / "data", 32)
    found = contents(tmp_path / "data")
    assert set(found) == {name.replace("-16.", "-32.") for name in old}
    for name in FILES:
        assert found[name] == (data_dir / name).read_bytes()


def test_text_lines(tmp_path):
    problem = registry.problems.get("text_lines2k_packed")
    text = tmp_path / "text"
    text.mkdir()
    (text / "train.txt").write_text("one two three .\nfour five .\n" * 50)
    with pytest.raises(UsageError, match="dev.txt is missing"):
        datagen.generate(problem, text, tmp_path / "data")
    (text / "dev.txt").write_text("one two .\n\nfive .\n")
    description = datagen.generate(problem, text, tmp_path / "data", max_length=16)
    assert description.splits["dev"].sentences == 2
    assert description.splits["train"].words == 350
    assert set(description.splits) == {"train", "dev"}


def test_every_end_of_a_line_ends_a_sentence(tmp_path):
    """And a byte order mark is no part of the first."""
    problem = registry.problems.get("text_lines2k_packed")
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfone two .\rthree .\r\nfour\n")
    (tmp_path / "dev.txt").write_bytes(b"five\r\rsix")
    description = datagen.generate(problem, tmp_path, tmp_path / "data", max_length=8)
    assert description.splits["train"].sentences == 3
    assert description.splits["train"].bytes == len("one two .\nthree .\nfour\n")
    assert description.splits["dev"].sentences == 2


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), "holds no .*source=tfds downloads it"),
        (lambda root: write_text(root, train="\n \n"), "the train text is empty"),
        (lambda root: write_text(root, "a b .\n", dev=""), "the dev text is empty"),
    ],
)
def test_missing_or_empty_text(tmp_path, prepare, message):
    prepare(tmp_path / "text")
    with pytest.raises(UsageError, match=message):
        datagen.generate(
            registry.problems.get(PROBLEM), tmp_path / "text", tmp_path / "data"
        )
    assert not (tmp_path / "data").exists()


def test_text_that_is_not_utf8(tmp_path):
    write_text(tmp_path, train="a b .\n")
    (tmp_path / FOLDER / TRAIN.format(1)).write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        datagen.generate(registry.problems.get(PROBLEM), tmp_path, tmp_path / "data")
