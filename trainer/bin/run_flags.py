"""The flags that et-trainer and et-sweep share: they say what a run is made of."""

from absl import flags

from trainer.bin import cli

flags.disclaim_key_flags()  # they are flags of the module that makes a `RunFlags`


class RunFlags:
    """Defines the flags, and reads them once they were parsed."""

    def __init__(self):
        self._problem: cli.Holder = flags.DEFINE_string(
            "problem", None, "Name of the problem."
        )
        self._model: cli.Holder = flags.DEFINE_string(
            "model", "transformer_lm", "Name of the model."
        )
        self._hparams_set: cli.Holder = flags.DEFINE_string(
            "hparams_set", "transformer_base", "Name of the set of hyperparameters."
        )
        self._hparams: cli.Holder = flags.DEFINE_string(
            "hparams", "", "Changes to the set: name=value,name=value."
        )
        self._data_dir = cli.DEFINE_path(
            "data_dir", None, "Folder that et-datagen wrote."
        )
        self._eval_steps = cli.DEFINE_count(
            "eval_steps",
            0,
            "Batches of an evaluation; 0 covers the whole split.",
            least=0,
        )
        self._dtype: cli.Holder = flags.DEFINE_enum(
            "dtype",
            "float32",
            ["float32", "mixed_bfloat16", "mixed_float16"],
            "Of the computation; weights stay float32.",
        )

    def hparams(self):
        """Returns the set that was chosen, with its changes."""
        from trainer import registry

        chosen = registry.hparams_sets.get(self._hparams_set.value)()
        return chosen.override(self._hparams.value)

    def require(self, *others):
        """Refuses a run that lacks one of its flags or of `others`."""
        cli.require(self._problem, self._data_dir, *others)

    def check_data(self, hparams):
        """Returns the data's description, which suits the problem and the batch."""
        from trainer import registry
        from trainer.data import dataset

        registry.problems.get(self._problem.value)
        description = dataset.load_description(
            self._data_dir.value, self._problem.value
        )
        description.tokens_per_batch(hparams.batch_size)
        return description

    @property
    def model(self):
        """Returns the name of the model."""
        return self._model.value

    def run(self, hparams, **others):
        """Returns the `Run` of `hparams`, of these flags and of `others`."""
        from trainer.training.run import Run

        return Run(
            problem=self._problem.value,
            model=self._model.value,
            data_dir=self._data_dir.value,
            hparams=hparams,
            eval_steps=self._eval_steps.value,
            dtype=self._dtype.value,
            **others,
        )
