"""Trains one language model after another on the same text, for four experiments."""

import dataclasses
import hashlib
import json
import pathlib

from absl import flags

from trainer.bin import cli
from trainer.errors import UsageError
from trainer.experiments import experiment
from trainer.files import write_text

flags.disclaim_key_flags()  # they are flags of the module that asks for them

# A short run sees its data about once: nothing to regularize.
NO_REGULARIZATION = (
    "layer_prepostprocess_dropout=0,attention_dropout=0,relu_dropout=0,"
    "label_smoothing=0,"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(experiment.Scale):
    """Holds the settings of one size of an experiment on text."""

    problem: str
    hparams_set: str
    hparams: str
    max_length: int = 256
    data_dir: str | None = None  # of et-datagen; None: made in the folder of results
    dtype: str = "float32"
    samples: int = 0  # sentences to draw at the end from the last entry


# The settings that experiments share; each adds its entries.
# A minute a run on two cores.
TINY = Scale(
    problem="languagemodel_lm1b2k_packed",
    hparams_set="transformer_tiny",
    hparams=NO_REGULARIZATION + "batch_size=2048,learning_rate_warmup_steps=100",
    train_steps=500,
    entries=(),
)
# Seconds a run.
SMOKE = dataclasses.replace(TINY, train_steps=6, max_length=64, tmp_dir="testdata")
# An hour or less a run on one GPU.
BASE = Scale(
    problem="languagemodel_lm1b32k_packed",
    hparams_set="transformer_base",
    hparams="learning_rate_warmup_steps=1000",
    train_steps=10_000,
    entries=(),
)
# The paper's run, on one V100 or better.
PAPER = dataclasses.replace(BASE, hparams="", train_steps=500_000)


class Runs:
    """Trains models of a `Scale`, on data that it makes if none is given."""

    def __init__(self, scale, output_dir):
        from trainer import registry
        from trainer.data import dataset

        self.scale = scale
        self.output_dir = pathlib.Path(output_dir)
        self.data_dir = scale.data_dir or str(self.output_dir / "data")
        if not scale.data_dir:
            self._make_data(scale)
        self.description = dataset.load_description(self.data_dir, scale.problem)
        self.hparams = registry.hparams_sets.get(scale.hparams_set)().override(
            scale.hparams
        )

    def _make_data(self, scale):
        """Makes the data in the folder of results, unless it is there.

        Raises:
            UsageError: what is there was made of other text or in other rows.
        """
        from trainer import registry
        from trainer.data import datagen
        from trainer.data import dataset

        made_of = pathlib.Path(self.data_dir, f"{scale.problem}.made_of.json")
        source = {
            "tmp_dir": str(pathlib.Path(scale.tmp_dir).resolve()),
            "max_length": scale.max_length,
        }
        if not dataset.Paths(self.data_dir, scale.problem).description.is_file():
            problem = registry.problems.get(scale.problem)
            datagen.generate(problem, scale.tmp_dir, self.data_dir, scale.max_length)
            write_text(made_of, json.dumps(source))
        elif made_of.is_file():
            before = json.loads(made_of.read_text("utf-8"))
            for flag, value in before.items():
                if value != source[flag]:
                    raise UsageError(
                        f"{self.data_dir} was made with --{flag}={value}, this start "
                        f"has {source[flag]}: give another --output_dir"
                    )

    def settings(self):
        """Returns the settings that tell these runs from others in the folder."""
        names = ("problem", "hparams_set", "hparams", "train_steps", "dtype")
        settings = {n: getattr(self.scale, n) for n in names}
        data = json.dumps(dataclasses.asdict(self.description), sort_keys=True)
        return settings | {
            "experiment": self.scale.experiment,
            "data": hashlib.sha256(data.encode()).hexdigest()[:16],
        }

    def run(self, hparams, **others):
        """Returns the `Run` of one model, of `hparams` and of `others`."""
        from trainer.training.run import Run

        scale = self.scale
        return Run(
            problem=scale.problem,
            data_dir=self.data_dir,
            hparams=hparams,
            train_steps=scale.train_steps,
            dtype=scale.dtype,
            local_eval_frequency=-(-scale.train_steps // 6),
            **others,
        )

    def train(
        self,
        label,
        seed,
        on_evaluation,
        output_dir=None,
        callbacks=(),
        hparams="",
        **changes,
    ):
        """Trains one model and returns its figures.

        Args:
            label: of the progress bar.
            seed: of weights and order of the data.
            on_evaluation: called with step and nats per token on the dev split.
            output_dir: folder for checkpoints, or None.
            callbacks: for Keras.
            hparams: changes to those of the scale, "name=value,name=value".
            **changes: more of these, by name.

        Returns:
            The figures of the run; "loss" is the nats per token of the end.
        """
        import keras

        from trainer.training import loop

        keras.backend.clear_session(free_memory=True)
        result = loop.train(
            self.run(
                dataclasses.replace(self.hparams.override(hparams), **changes),
                output_dir=output_dir,
                random_seed=seed,
                label=label,
            ),
            extra_callbacks=callbacks,
            on_evaluation=lambda step, e: on_evaluation(step, e.nats_per_token),
        )
        if result.interrupted_by:
            raise KeyboardInterrupt
        figures = result.to_dict()
        return figures | {"loss": figures["dev"]["nats_per_token"]}


def define_changes():
    """Defines flags that change the text and the model of a scale, and returns them."""
    return [
        flags.DEFINE_string("problem", None, "Problem; --tmp_dir holds its text."),
        flags.DEFINE_string("hparams_set", None, "Set of hyperparameters."),
        flags.DEFINE_string(
            "hparams", None, "NAME=VALUE,... in addition to those of the scale."
        ),
        cli.DEFINE_count("max_length", None, "Tokens a row."),
        cli.DEFINE_path(
            "data_dir", None, "Folder that et-datagen wrote, in place of --tmp_dir."
        ),
    ]


def known_constant(optimizer):
    """Returns the c that goes with a registered optimizer, at the width it is of."""
    from trainer import registry

    return registry.optimizers.learning_rate_constant(optimizer)


def known_perplexity(tmp_dir):
    """Returns the perplexity per word of the grammar that wrote the text, or None."""
    path = pathlib.Path(tmp_dir) / "entropy.json"
    if not path.is_file():
        return None
    return json.loads(path.read_text("utf-8"))["dev_perplexity_per_word"]
