"""Input of strangers: an answer or one clear error, and nothing but what was asked.

Hypothesis draws it; `make test-faults` draws a hundred times more.
"""

import io
import json
import os
import pathlib
import tarfile
import zipfile

import hypothesis
import keras
import pytest
from hypothesis import strategies as st

from conftest import PROBLEM
from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import memory_report
from extreme_tensoring_tf.tensor_index import tensor_index
from trainer.data import batches
from trainer.data import dataset
from trainer.data import lm1b
from trainer.data import text
from trainer.data.tokenizer import EOS_ID
from trainer.errors import UsageError
from trainer.evaluation import scoring
from trainer.hparams import HParams
from trainer.inference import decoding
from trainer.runs import checkpoints
from trainer.runs import run_folder
from trainer.sizes import Bytes
from trainer.training import ranges

ROOT = pathlib.Path(__file__).parents[1]
MORE = int(os.environ.get("FAULTS_EXAMPLES", "1"))  # times as many

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
NUMBERS = st.sampled_from(
    ["9" * 400, "1e999", "nan", "-1", "0", "1_0", "٣", "0x10", "1e3", "2**31", "4", ""]
)


def drawn(examples=100):
    return hypothesis.settings(
        max_examples=examples * MORE,
        suppress_health_check=list(hypothesis.HealthCheck),
        deadline=None,
    )


@drawn()
@hypothesis.given(
    st.text(max_size=40)
    | st.lists(
        st.tuples(st.sampled_from([*HParams().__dict__]), NUMBERS).map("=".join),
        max_size=4,
    ).map(",".join)
)
def test_hparams(assignments):
    try:
        HParams().override(assignments)
    except UsageError as error:
        assert str(error)


@drawn()
@hypothesis.given(
    st.text(max_size=30)
    | st.tuples(
        st.sampled_from([*HParams().__dict__]), NUMBERS, st.sampled_from("|:,"), NUMBERS
    ).map(lambda x: f"{x[0]}={x[1]}{x[2]}{x[3]}")
)
def test_ranges_of_a_sweep(text):
    try:
        ranges.parse(text)
    except UsageError as error:
        assert str(error)


@drawn()
@hypothesis.given(NUMBERS | st.text(max_size=12) | st.from_regex(r"\d+[KMG]B"))
def test_sizes(size):
    try:
        assert Bytes(size) >= 0
    except ValueError as error:
        assert "is not a size such as" in str(error)


SIZES = st.integers(-3, 40) | st.sampled_from([2**31 - 1, 2**61 - 1, 10**40, 1.5, True])
SHAPES = st.lists(SIZES, max_size=5)


@drawn()
@hypothesis.given(
    SHAPES, st.integers(-2, 6) | st.sampled_from(["inf", "x", None, 1.0, 10**9])
)
def test_shapes_and_levels(shape, level):
    """No size is worked on for long: it could be a prime with a hundred digits."""
    try:
        dims = tensor_index(shape, level)
    except (ValueError, TypeError) as error:
        assert str(error)
    else:
        assert all(dim >= 1 for dim in dims)


@drawn(50)
@hypothesis.given(
    st.lists(st.integers(1, 30), max_size=4), SHAPES | st.lists(SHAPES, max_size=4)
)
def test_rules(shape, dims):
    optimizer = ExtremeTensoring(0.1, tensor_dims={".*": dims})
    try:
        memory_report([("a/kernel", tuple(shape))], {"ours": optimizer})
    except (ValueError, TypeError) as error:
        assert str(error)


SHAPES = st.lists(
    st.lists(st.integers(1, 5000), max_size=3).map(tuple), min_size=1, max_size=4
)


@drawn(50)
@hypothesis.given(SHAPES, st.integers(-5, 200_000))
def test_budgets(shapes, budget):
    variables = [keras.KerasTensor(s, name=f"v{i}") for i, s in enumerate(shapes)]
    try:
        optimizer = ExtremeTensoring.for_budget(variables, budget)
    except ValueError as error:
        assert budget < 4 * len(shapes), error
        assert "less than one scalar for each" in str(error)
        return
    report = memory_report(variables, [optimizer])
    assert report.totals[optimizer.name]["bytes"] <= budget


@drawn(50)
@hypothesis.given(st.binary(max_size=200))
def test_text_of_any_bytes(content):
    try:
        for line in text.lines(io.BytesIO(content), "it"):
            assert "\n" not in line
    except UsageError as error:
        assert str(error).startswith("it is not UTF-8 text: line ")


@drawn(10)
@hypothesis.given(st.lists(st.text(max_size=60), min_size=1, max_size=3))
def test_text_is_scored_and_read_back(trained, lines):
    lines = [line.encode(errors="replace").decode() for line in lines]
    scores = list(
        scoring.score_lines(
            trained.model, trained.processor, lines, trained.max_length, 512
        )
    )
    assert len(scores) == sum(bool(line.strip()) for line in lines)
    for line in lines:
        assert all(
            0 <= i < trained.processor.vocab_size()
            for i in trained.processor.encode(line)
        )


@drawn(5)
@hypothesis.given(st.lists(st.text(max_size=60), min_size=2, max_size=2))
def test_prompts_are_continued(trained, prompts):
    prompts = [prompt.encode(errors="replace").decode() for prompt in prompts]
    decoder = decoding.Decoder(trained.model, trained.max_length, 4, decoding.generate)
    ids = trained.processor.encode(prompts)
    try:
        for each in ids:
            decoder.check(each, "it")
    except UsageError as error:
        assert "it has " in str(error)
        return
    continued = decoder(ids)
    assert continued.shape[0] == 2
    for row in continued.tolist():
        assert all(0 <= i < trained.processor.vocab_size() for i in row)
        trained.processor.decode([i for i in row if i > EOS_ID])


@pytest.fixture(scope="module")
def port(saved_model, tmp_path_factory):
    pytest.importorskip("fastapi")
    from examples.serve_test import server

    with server(saved_model, tmp_path_factory.mktemp("log") / "log") as (number, _):
        yield number


@pytest.mark.faults
@drawn(200)
@hypothesis.given(
    JSON
    | st.fixed_dictionaries({"texts": JSON})
    | st.fixed_dictionaries({"prompts": JSON, "length": JSON, "seed": JSON})
    | st.binary(max_size=60),
    st.sampled_from(["/score", "/generate"]),
)
def test_requests_to_the_server(port, body, path):
    from examples.serve_test import post

    status, answer = post(port, path, body)
    assert status in (200, 400, 422), (body, answer)


@drawn()
@hypothesis.given(JSON, st.sampled_from(["", "hparams", "problem", "model"]))
def test_settings_of_a_run(tmp_path_factory, value, key):
    folder = tmp_path_factory.mktemp("run")
    config = {"problem": "p", "model": "m", "hparams": {}}
    content = config | {key: value} if key else value
    (folder / "config.json").write_text(json.dumps(content))
    try:
        config = run_folder.read_config(folder)
    except UsageError as error:
        assert "config.json is damaged" in str(error)
    else:
        assert isinstance(config["hparams"]["batch_size"], int)
        assert isinstance(config["problem"], str)


@drawn()
@hypothesis.given(
    JSON,
    st.sampled_from(["", "vocab_size", "max_length", "packed", "problem", "splits"]),
    st.sampled_from(["", "sentences", "tokens", "rows", "ends"]),
)
def test_descriptions_of_data(data_dir, tmp_path_factory, value, key, count):
    path = dataset.Paths(data_dir, PROBLEM).description
    fields = json.loads(path.read_text())
    if key:
        fields[key] = value
    elif count:
        fields["splits"]["dev"][count] = value
    else:
        fields = value
    path = tmp_path_factory.mktemp("data") / "p.json"
    path.write_text(json.dumps(fields))
    try:
        found = dataset.read_description(path)
    except UsageError as error:
        assert "p.json is damaged" in str(error)
    else:
        assert found.vocab_size > 0 and found.max_length > 0
        assert all(split.row_count >= 0 for split in found.splits.values())


def test_json_that_is_nested_without_end(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(UsageError, match="config.json is damaged"):
        run_folder.read_config(tmp_path)


@drawn(30)
@hypothesis.given(st.binary(max_size=300))
def test_rows_of_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("rows") / "p-dev-32.array_record"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is damaged"):
        batches.Bucket(path, 32, 5)


def member(path):
    with zipfile.ZipFile(path) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


def changed(node, path, value):
    """A JSON value with another one in the place that a path of numbers leads to."""
    if not path or not isinstance(node, dict | list) or not node:
        return value
    keys = list(node) if isinstance(node, dict) else range(len(node))
    key = keys[path[0] % len(keys)]
    if isinstance(node, dict):
        return node | {key: changed(node[key], path[1:], value)}
    return [changed(x, path[1:], value) if i == key else x for i, x in enumerate(node)]


@pytest.mark.faults
@drawn(10)
@hypothesis.given(
    st.lists(st.integers(0, 50), min_size=1, max_size=8),
    JSON | st.sampled_from([10**12, "os", "system", {"class_name": "Lambda"}]),
)
def test_checkpoints_with_any_config(trained, tmp_path_factory, path, value):
    """Whole by its checksums; what it asks for is another thing."""
    parts = member(trained.path)
    config = json.loads(parts["config.json"])
    parts["config.json"] = json.dumps(changed(config, path, value)).encode()
    file = tmp_path_factory.mktemp("model") / "model-1.keras"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    try:
        checkpoints.load(file)
    except UsageError as error:
        assert str(error).startswith(str(file))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras has one rule for all"
)
def test_a_checkpoint_runs_no_code(tmp_path):
    """A Lambda layer is Python's bytecode."""
    inputs = keras.Input((2,))
    layer = keras.layers.Lambda(lambda x: x + 1)
    keras.Model(inputs, layer(inputs)).save(tmp_path / "model-1.keras")
    with pytest.raises(UsageError, match="model-1.keras cannot be loaded .*lambda"):
        checkpoints.load(tmp_path / "model-1.keras")


@pytest.mark.parametrize("kind", ["parent", "absolute", "link", "hard link", "device"])
def test_an_archive_stays_in_its_folder(tmp_path, kind):
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    name = {"parent": "../outside", "absolute": str(outside)}.get(kind, "inside")
    info = tarfile.TarInfo(f"{lm1b.FOLDER}/../{name}" if kind == "parent" else name)
    info.type, info.linkname = tarfile.REGTYPE, "../outside"
    info.type = {
        "link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
    }.get(kind, tarfile.REGTYPE)
    folder = tmp_path / "text"
    folder.mkdir()
    with tarfile.open(folder / f"{lm1b.FOLDER}.tar.gz", "w:gz") as tar:
        tar.addfile(info, io.BytesIO())
    with pytest.raises(UsageError, match="cannot be unpacked|does not hold the folder"):
        lm1b.folder(folder, "archive")
    assert outside.read_text() == "as it was"
    assert [p.name for p in folder.iterdir()] == [f"{lm1b.FOLDER}.tar.gz"]


def test_nothing_unpickles_or_evaluates():
    unsafe = ("pickle", "marshal", "shelve", "dill", "joblib", "yaml", "eval(", "exec(")
    unsafe += ("allow_pickle", "unsafe_deserialization", "safe_mode=False")
    for folder in ("extreme_tensoring_tf", "trainer", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            if not file.stem.endswith("_test"):
                words = file.read_text("utf-8").replace("_eval(", "")
                assert not [w for w in unsafe if w in words], file
