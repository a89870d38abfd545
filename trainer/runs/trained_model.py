"""Loads a trained model ready for use: weights, vocabulary, settings of its run."""

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
    """Holds a model of a run with all that it takes to use it; `load` returns one."""

    model: keras.Model  # with averaged weights, if the run keeps them
    processor: tokenizer.Tokenizer  # its vocabulary
    path: pathlib.Path  # of the checkpoint
    config: dict  # of the run, see `Run.identity`
    description: dataset.Description  # of the data that it was trained on

    @property
    def max_length(self) -> int:
        """The tokens of the longest row that the model was trained on."""
        return self.description.max_length

    @property
    def batch_size(self) -> int:
        """The tokens of the batches that the model was trained on."""
        return self.config["hparams"]["batch_size"]

    def check_data(
        self, data_dir: str | pathlib.Path, problem: str | None = None
    ) -> dataset.Description:
        """Returns the description of data that this model can be evaluated on.

        Args:
            data_dir: folder that et-datagen wrote.
            problem: name of the problem. Defaults to the one trained on.

        Raises:
            UsageError: there is no such data, or it has another vocabulary or longer
                rows than the data of the training.
        """
        found = dataset.load_description(data_dir, problem or self.config["problem"])
        check_vocabulary(self.path, self.description, data_dir, found)
        if found.max_length > self.max_length:
            raise UsageError(
                f"{data_dir} has rows of {found.max_length} tokens, but {self.path} "
                f"was trained on rows of {self.max_length} at most: run et-datagen "
                f"with max_length={self.max_length}"
            )
        return found


def check_vocabulary(
    path: str | pathlib.Path,
    trained_on: dataset.Description,
    data_dir: str | pathlib.Path,
    description: dataset.Description,
) -> None:
    """Refuses to let a checkpoint meet token ids of another vocabulary.

    Args:
        path: of the checkpoint.
        trained_on: `Description` of the data that it was trained on.
        data_dir: folder of the data that it is to meet.
        description: of that data.

    Raises:
        UsageError: the two vocabularies differ.
    """
    if trained_on.tokenizer_sha256 != description.tokenizer_sha256:
        raise UsageError(
            f"{data_dir} has another vocabulary than the one that {path} was trained "
            f"with: {description.vocab_size} pieces, SHA-256 "
            f"{description.tokenizer_sha256[:12]}, not {trained_on.vocab_size} pieces, "
            f"SHA-256 {trained_on.tokenizer_sha256[:12]}. Give the data_dir of its "
            "training"
        )


def load(
    output_dir: str | pathlib.Path, checkpoint_path: str | pathlib.Path | None = None
) -> TrainedModel:
    """Loads the model of a run, with the vocabulary that the run's folder holds.

    Args:
        output_dir: folder of the run.
        checkpoint_path: of a checkpoint; None: the newest. It may be of another run
            with the same vocabulary, whose settings and data then describe it.

    Raises:
        UsageError: the folder holds no run or no checkpoint, or the checkpoint is
            damaged or of another vocabulary.
    """
    config = run_folder.read_config(output_dir)
    processor, description = run_folder.read_vocabulary(output_dir)
    if checkpoint_path:
        path = pathlib.Path(checkpoint_path)
        own = run_folder.of_checkpoint(path)
        config = run_folder.read_config(own)
        processor, trained_on = run_folder.read_vocabulary(own)
        check_vocabulary(path, trained_on, output_dir, description)
        description = trained_on
    elif (path := checkpoints.latest(output_dir)) is None:
        raise UsageError(f"{output_dir} holds no checkpoint yet")
    model = checkpoints.load(path)
    optimizer_state.use_averaged_weights(model)
    return TrainedModel(model, processor, path, config, description)
