import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from benchmarks.measure import RETURNING_MEMORY
from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import memory_report

SHAPES = [(), (7,), (12, 16), (3, 3, 4, 8)]
KERAS_OPTIMIZERS = {
    "sgd": keras.optimizers.SGD(),
    "momentum": keras.optimizers.SGD(momentum=0.9),
    "adagrad": keras.optimizers.Adagrad(),
    "rmsprop": keras.optimizers.RMSprop(),
    "adam": keras.optimizers.Adam(),
    "adafactor": keras.optimizers.Adafactor(),
    "lion": keras.optimizers.Lion(),
}


def variables():
    return [keras.Variable(np.ones(shape), dtype="float32") for shape in SHAPES]


@pytest.mark.parametrize("name", KERAS_OPTIMIZERS)
def test_reports_what_keras_allocates(name):
    optimizer = KERAS_OPTIMIZERS[name]
    optimizer.build(variables())
    allocated = sum(
        int(np.prod(v.shape))
        for v in optimizer.variables
        if v.name not in ("iteration", "learning_rate")
    )
    totals = memory_report(SHAPES, [name]).to_dict()["totals"]
    assert totals[name]["scalars"] == allocated
    assert totals[name]["bytes"] == 4 * allocated


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"level": 3, "beta_1": 0.9},
        {"orthogonalize": ["variable"]},
        {"orthogonalize": ["variable"], "beta_1": 0.9},
        {"orthogonalize": ["variable"], "beta_1": 0.9, "momentum": 0.0},
        {"orthogonalize": ["variable"], "momentum": 0.9},
    ],
)
def test_reports_our_state_size(kwargs):
    optimizer = ExtremeTensoring(name="ours", **kwargs)
    totals = memory_report(variables(), [optimizer]).totals
    optimizer.build(variables())
    assert totals["ours"]["scalars"] == optimizer.state_size
    level = f"et{kwargs.get('level', 2)}"
    if not kwargs:
        assert memory_report(SHAPES, [level]).totals[level] == totals["ours"]


def test_table_and_numbers():
    report = memory_report({"kernel": (2000, 512), "bias": (512,)})
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["variable", "shape", "dims"]
    kernel = next(line for line in lines if line.startswith("kernel"))
    assert "2000x512" in kernel and "40x50x16x32" in kernel
    assert "2,048,000" in kernel and " 138 " in kernel
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["variables"][0]["optimizers"]["et2"]["dims"] == [40, 50, 16, 32]
    vectors = 3 * 4 * (2000 + 512 + 16 + 32)  # rows and columns of both views
    expected = {"scalars": 186, "bytes": 744, "update_bytes": vectors}
    assert numbers["totals"]["et2"] == expected


def test_orthogonalized_matrices_have_no_state():
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(40, 16),
            keras.layers.Dense(30),
        ]
    )
    ours = ExtremeTensoring(name="ours", orthogonalize=True)
    report = memory_report(model, ["et2", "et2_orthogonal", ours])
    assert report.totals["ours"] == report.totals["et2_orthogonal"]
    embedding, kernel, bias = (
        [v["optimizers"][name]["scalars"] for name in ("et2", "ours")]
        for v in report.variables
    )
    assert embedding[0] == embedding[1] > 0 and bias[0] == bias[1] > 0
    assert kernel[0] > 0 and kernel[1] == 0
    ours.build(model.trainable_variables)
    assert report.totals["ours"]["scalars"] == ours.state_size
    assert not any("kernel" in v.name for v in ours.variables)
    # Two copies of the matrix and three products of its shorter side.
    kernel = report.variables[1]["optimizers"]["ours"]
    assert kernel["update_bytes"] == 4 * (2 * 16 * 30 + 3 * 16 * 16)


def test_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6)])
    assert memory_report(model, ["adam"]).totals["adam"]["scalars"] == 2 * 30


def test_built_optimizer():
    optimizer = ExtremeTensoring(name="ours", level=3)
    with pytest.raises(ValueError, match="no trainable variable"):
        memory_report(optimizer)
    optimizer.build(variables())
    report = memory_report(optimizer)
    assert report.totals["ours"] == report.totals["et3"]
    assert report.totals["ours"]["scalars"] == optimizer.state_size


def test_an_optimizer_that_scales_the_loss_is_the_one_inside():
    """As that of a model with mixed_float16 is; and one needs no list."""
    ours = ExtremeTensoring(name="ours", level=3)
    scaled = keras.optimizers.LossScaleOptimizer(ours)
    scaled.build(variables())
    for report in (memory_report(scaled), memory_report(variables(), scaled)):
        assert report.totals["ours"]["scalars"] == ours.state_size
    assert list(memory_report(SHAPES, "adam").totals) == ["adam"]


def test_variables_without_entries_keep_one_scalar_as_in_the_optimizer():
    empty = [keras.Variable(np.ones(s), dtype="float32") for s in ((0, 5), (3,))]
    optimizer = ExtremeTensoring(name="ours")
    optimizer.build(empty)
    report = memory_report(optimizer)
    assert report.totals["et2"] == report.totals["ours"]
    assert report.totals["ours"]["scalars"] == optimizer.state_size == 4
    assert "0x5" in str(report)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("momentum_dtype", [None, "bfloat16", "float32"])
def test_bytes_of_momentum_are_those_of_its_slot(dtype, momentum_dtype):
    if (keras.backend.backend(), dtype) == ("jax", "float64"):
        pytest.skip("JAX has no float64 by default")
    variable = keras.Variable(np.ones((6, 8)), dtype=dtype, name="kernel")
    optimizer = ExtremeTensoring(beta_1=0.9, momentum_dtype=momentum_dtype)
    optimizer.build([variable])
    (total,) = memory_report([variable], [optimizer]).totals.values()
    allocated = sum(
        int(np.prod(v.shape)) * np.dtype(keras.ops.convert_to_numpy(v).dtype).itemsize
        for v in optimizer.variables
        if v.name.endswith("momentum") or "statistic" in v.name
    )
    assert total["bytes"] == allocated


def test_optimizers_of_one_name_are_told_apart():
    forms = [ExtremeTensoring(level=level) for level in (1, 2, 3)]
    totals = memory_report([(512, 512)], forms).totals
    assert [t["scalars"] for t in totals.values()] == [1024, 96, 40]
    names = [f"extreme_tensoring{suffix}" for suffix in ("", "#2", "#3")]
    assert list(totals) == names


def test_wrong_arguments():
    with pytest.raises(ValueError, match="Received: 'shampoo'"):
        memory_report(SHAPES, ["shampoo"])
    with pytest.raises(ValueError, match="by their names. Received: <keras.*Adam"):
        memory_report(SHAPES, [keras.optimizers.Adam()])
    with pytest.raises(ValueError, match="no trainable variable"):
        memory_report(keras.Sequential())


@pytest.mark.parametrize(
    "rows, text", [(249_900, "1 MB"), (249_800, "999 KB"), (300 * 10**9, "1.2 TB")]
)
def test_sizes_have_three_digits(rows, text):
    assert f" {text}" in str(memory_report([(rows,)], ["adagrad"]))


MEASURE = """
import json, sys
import numpy as np
from benchmarks import contestants
from benchmarks.measure import peak_temporary_bytes

shapes, names = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
grads = [rng.standard_normal(s, dtype="float32") for s in shapes]
peaks = {}
for name in names:
    values = [np.ones(s, "float32") for s in shapes]
    step = contestants.make(name, "tensorflow")(grads, values)
    step.run(1)
    peaks[name] = peak_temporary_bytes(lambda: step.run(1))
print(json.dumps(peaks))
"""


only_where_peaks_show = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or not sys.platform.startswith("linux"),
    reason="peaks are read from /proc, and TensorFlow's XLA is what is reported",
)


def measured_peaks(shapes, names):
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([shapes, names])],
        env=os.environ | RETURNING_MEMORY,
        check=True,
        capture_output=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


@only_where_peaks_show
def test_update_bytes_of_a_matrix_that_is_orthogonalized():
    """Its temporaries are larger than the matrix, and of one matrix at a time."""
    shapes = {"a/kernel": (2048, 1024), "b/kernel": (2048, 1024)}
    reported = memory_report(shapes, ["et2_orthogonal"]).totals
    reported = reported["et2_orthogonal"]["update_bytes"]
    assert reported == 4 * (2 * 2048 * 1024 + 3 * 1024 * 1024)
    peaks = measured_peaks(list(shapes.values()), ["et2_orthogonal"])
    assert 0.5 * reported < peaks["et2_orthogonal"] < 1.2 * reported


@only_where_peaks_show
def test_update_bytes_are_what_a_step_takes():
    shapes = [(200_000, 64), (512, 512), (7,)]
    names = ["adam", "adafactor", "et1", "et2", "et3", "etinf", "et2_guarded"]
    peaks = measured_peaks(shapes, names)
    totals = memory_report(shapes, names[:-1]).totals
    totals["et2_guarded"] = totals["et2"]
    model_bytes = 4 * sum(int(np.prod(s)) for s in shapes)
    for name in names:
        reported = totals[name]["update_bytes"]
        assert abs(peaks[name] - reported) < 0.1 * model_bytes, name
    assert totals["et2"]["update_bytes"] < 0.1 * model_bytes
    assert totals["adafactor"]["update_bytes"] == 2 * model_bytes
