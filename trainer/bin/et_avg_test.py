import shutil

import numpy as np

from trainer.bin.bin_test import call
from trainer.runs import checkpoints


def test_checkpoints_average(trained, tmp_path):
    """The averages of weights that the run keeps are averaged in their turn."""
    output_dir = tmp_path / "run"
    shutil.copytree(trained.path.parent.parent, output_dir)
    model = checkpoints.load(trained.path)
    moved = model.optimizer._model_variables_moving_average
    for variable in moved:
        variable.assign(np.asarray(variable) + 1.0)
    checkpoints.save(model, output_dir, 61)
    status, _, err = call(
        "et_avg", f"--output_dir={output_dir}", "--num_last_checkpoints=5"
    )
    assert status == 1 and "holds 2 checkpoints, not 5" in err
    status, out, err = call("et_avg", f"--output_dir={output_dir}")  # of all
    assert status == 0, err
    assert "the average of model-60.keras, model-61.keras" in out
    average = checkpoints.load(checkpoints.folder(output_dir) / "average.keras")
    for a, b in zip(moved, average.trainable_variables):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a) - 0.5, atol=1e-6)
