"""A run with a user's model and optimizer: every binary knows them by --usr_dir."""

import json

from conftest import PROBLEM
from trainer.bin.bin_test import call

MINE = """
import keras

from trainer import registry
from trainer.models import transformer


@keras.saving.register_keras_serializable("mine")
class Halving(keras.optimizers.SGD):
    pass


@registry.optimizers.register(learning_rate_constant=0.5)
def halving(learning_rate, hparams):
    return Halving(learning_rate)


@registry.models.register
def my_lm(hparams, vocab_size, max_length):
    return transformer.transformer_lm(hparams, vocab_size, max_length)
"""
HPARAMS = "hidden_size=16,filter_size=16,num_heads=2,num_hidden_layers=1,"
HPARAMS += "batch_size=256,optimizer=halving"


def test_a_run_of_the_users_own(data_dir, tmp_path):
    usr_dir = tmp_path / "usr"
    usr_dir.mkdir()
    (usr_dir / "mine.py").write_text(MINE)
    run = [f"--data_dir={data_dir}", f"--output_dir={tmp_path / 'run'}"]
    status, out, err = call(
        "et_trainer",
        *run,
        f"--usr_dir={usr_dir}",
        f"--problem={PROBLEM}",
        "--hparams_set=transformer_tiny",
        f"--hparams={HPARAMS}",
        "--model=my_lm",
        "--train_steps=2",
        "--eval_steps=1",
    )
    assert status == 0, err
    assert "optimizer halving" in out

    evaluate = ["et_eval", *run, "--eval_steps=1", "--json"]
    status, out, err = call(*evaluate, f"--usr_dir={usr_dir}")
    assert status == 0, err
    assert json.loads(out)["tokens"] > 0

    status, out, err = call(*evaluate)
    assert (status, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and "class 'Halving'" in last
    assert "Traceback" not in err

    model = f"{tmp_path}/run/checkpoints/best.keras"
    status, out, err = call("et_plan", model, f"--usr_dir={usr_dir}", "--budget=1KB")
    assert status == 0, err
    assert out.splitlines()[-1].startswith("1,000 bytes hold this plan")
