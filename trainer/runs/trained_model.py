"""A trained model ready for use: weights, vocabulary, and how it was trained."""

import dataclasses
import pathlib

import keras

from trainer.data import dataset
from trainer.data import tokenizer
from trainer.errors import UsageError
from trainer.optim import optimizer_state
from trainer.runs import checkpoints
from trainer.runs import run_folder


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What `load` gives."""

    model: keras.Model  # with averaged weights, if the run keeps them
    processor: object  # SentencePiece's
    path: pathlib.Path  # of the checkpoint
    config: dict  # of the run, see `Run.identity`
    description: dataset.Description  # of the data

    @property
    def max_length(self):
        """Tokens of the longest row it was trained on."""
        return self.config["data"]["max_length"]

    @property
    def batch_size(self):
        """Tokens of its training batches."""
        return self.config["hparams"]["batch_size"]


def checkpoint(output_dir, path=None):
    """`path`, or the newest checkpoint of a run.

    Raises:
        UsageError: there is none.
    """
    path = path or checkpoints.latest(output_dir)
    if path is None:
        raise UsageError(f"{output_dir} holds no checkpoint yet")
    return pathlib.Path(path)


def load(output_dir, data_dir, checkpoint_path=None) -> TrainedModel:
    """Loads the model of a run with the vocabulary of its data.

    Args:
        output_dir: folder of the run.
        data_dir: folder that et-datagen wrote.
        checkpoint_path: of a checkpoint; None: the newest.

    Raises:
        UsageError: a folder holds no run or no data, or the data has another
            vocabulary than the run's.
    """
    config = run_folder.read_config(output_dir)
    path = checkpoint(output_dir, checkpoint_path)
    description = dataset.load_description(data_dir, config["problem"])
    if description.tokenizer_sha256 != config["data"]["tokenizer_sha256"]:
        raise UsageError(
            f"{data_dir} has another vocabulary than the run in {output_dir}: give the "
            "--data_dir of its training"
        )
    model = checkpoints.load(path)
    optimizer_state.use_averaged_weights(model)
    vocabulary = dataset.Paths(data_dir, config["problem"]).tokenizer
    return TrainedModel(model, tokenizer.load(vocabulary), path, config, description)
