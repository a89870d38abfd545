import pytest

from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.training.run import Run


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train_steps": 0}, "train_steps must be an integer >= 1. Got 0"),
        ({"train_steps": 2.5}, "train_steps must be an integer >= 1. Got 2.5"),
        ({"local_eval_frequency": 0}, "local_eval_frequency must be an integer >= 1"),
        ({"save_checkpoints_steps": -1}, "save_checkpoints_steps must be an integer"),
        ({"keep_checkpoint_max": 0}, "keep_checkpoint_max must be an integer >= 1"),
        ({"nonfinite_steps": 0}, "nonfinite_steps must be an integer >= 1. Got 0"),
        ({"eval_steps": -1}, "eval_steps must be an integer >= 0. Got -1"),
        ({"early_stopping_evaluations": -1}, "early_stopping_evaluations must be an"),
        ({"random_seed": -1}, "random_seed must be an integer >= 0. Got -1"),
        ({"random_seed": 2**32}, "random_seed must be below 4294967296"),
        ({"dtype": "float16"}, "dtype must be one of float32, mixed_bf.*Got float16"),
        ({"xla_compile": True}, "xla_compile must be one of auto, true, false"),
        ({"profile": (5, 4)}, r"profile must be .* Got \(5, 4\)"),
        ({"profile": "5"}, "profile must be .* Got 5"),
    ],
)
def test_values_out_of_their_range(settings, message):
    with pytest.raises(UsageError, match=message):
        Run("problem", "data", HParams(), **{"train_steps": 1} | settings)
