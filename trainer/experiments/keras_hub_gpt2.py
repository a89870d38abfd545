r"""Trains KerasHub's GPT-2, unchanged, with one optimizer after another.

    pip install --no-deps keras-hub kagglehub kagglesdk
    pip install regex rich tokenizers
    python -m trainer.experiments.keras_hub_gpt2 --scale=cpu \
        --tmp_dir=FOLDER_OF_THE_UNPACKED_ARCHIVE --output_dir=keras_hub_gpt2

A GPT2CausalLM of the size that the hparams name, on rows of text that run on from
sentence to sentence. Nothing but `optimizer=` differs between entries. Rates are tuned
as `comparison` says. Without dependencies, because keras-hub asks for tensorflow-text,
and that for the package `tensorflow`, which overwrites `tensorflow-cpu`.
"""

import dataclasses
import importlib.util

from trainer.data.tokenizer import PAD_ID
from trainer.errors import UsageError
from trainer.experiments import experiment
from trainer.experiments import language_modeling

ENTRIES = ("sgd", "et2", "et2_rank1", "et2_orthogonal", "et2_orthogonal_momentum")
ENTRIES += ("adafactor", "adam")
SCALES = {
    "smoke": dataclasses.replace(language_modeling.SMOKE, entries=("et2_orthogonal",)),
    "cpu": dataclasses.replace(
        language_modeling.TINY, entries=ENTRIES, trials=3, seeds=1
    ),
    "gpu": dataclasses.replace(language_modeling.BASE, entries=ENTRIES, trials=4),
    "paper": dataclasses.replace(
        language_modeling.PAPER, train_steps=50_000, entries=ENTRIES, trials=4
    ),
}


def gpt2(hparams, vocab_size, length):
    """Returns a GPT2CausalLM of KerasHub with random weights."""
    import keras
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=vocab_size,
        num_layers=hparams.num_hidden_layers,
        num_heads=hparams.num_heads,
        hidden_dim=hparams.hidden_size,
        intermediate_dim=hparams.filter_size,
        dropout=hparams.layer_prepostprocess_dropout,
        max_sequence_length=length,
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    # Without KerasHub's own `fit`, which preprocesses text and takes no generator.
    return keras.Model(model.inputs, model.outputs, name="gpt2")


def shifted(rows):
    """Returns inputs, next tokens and weights without padding, of (B, T + 1) ids."""
    inputs, labels = rows[:, :-1], rows[:, 1:]
    real = inputs != PAD_ID
    return {"token_ids": inputs, "padding_mask": real}, labels, labels != PAD_ID


def train(runs, name, constant, seed, on_evaluation):
    """Trains once and returns the record; its "loss" is the dev nats per token."""
    import keras

    from trainer.data import batches
    from trainer.experiments import fitting
    from trainer.optim import catalog

    scale, hparams = runs.scale, runs.hparams
    keras.backend.clear_session(free_memory=True)
    keras.utils.set_random_seed(seed)
    description = runs.description
    model = gpt2(hparams, description.vocab_size, description.max_length - 1)
    hparams = dataclasses.replace(
        hparams, optimizer=name, learning_rate_constant=constant
    )
    model.compile(
        optimizer=catalog.create(hparams, model.trainable_variables),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        # The loss of an evaluation is the mean of its batches', whatever their tokens.
        weighted_metrics=[
            keras.metrics.SparseCategoricalCrossentropy("nats", from_logits=True)
        ],
        jit_compile="auto",
    )
    (dev,) = batches.buckets(runs.data_dir, description, "dev")
    dev = shifted(dev.rows(range(len(dev)))[1])
    buckets = batches.buckets(runs.data_dir, description, "train")
    batches = batches.training_batches(buckets, hparams.batch_size, seed)

    def nats_per_token():
        figures = model.evaluate(
            *dev[:2], sample_weight=dev[2], verbose=0, return_dict=True
        )
        return figures["nats"]

    return fitting.fit(
        model,
        (shifted(rows) for rows, _ in batches),
        scale.train_steps,
        f"{name} c={constant:.3g} seed {seed}",
        nats_per_token,
        on_evaluation,
    )


def conduct(scale, output_dir):
    from trainer import registry
    from trainer.experiments import comparison
    from trainer.experiments import report

    if not importlib.util.find_spec("keras_hub"):
        raise UsageError(
            "this experiment needs keras-hub: pip install --no-deps keras-hub "
            "kagglehub kagglesdk, then pip install regex rich tokenizers"
        )
    for name in scale.entries:
        registry.optimizers.get(name)
    runs = language_modeling.Runs(scale, output_dir)
    compared = comparison.Comparison(
        output_dir,
        runs.settings(),
        scale,
        language_modeling.known_constant,
        lambda *arguments: train(runs, *arguments),
    )
    finished = {name: compared.records(name) for name in scale.entries}
    rows = [
        (
            name,
            f"{records[0]['c']:.3g}",
            records[0]["state_scalars"],
            f"{100 * records[0]['state_scalars'] / records[0]['parameters']:.3g}%",
            report.mean_and_spread([r["loss"] for r in records], 4),
        )
        for name, records in finished.items()
    ]
    columns = ("optimizer", "c", "state scalars", "of the parameters", "nats per token")
    report.publish(report.markdown(columns, rows), output_dir)
    report.curves_plot(
        output_dir / "curves",
        {name: records[0]["curve"] for name, records in finished.items()},
        "step",
        "held-out nats per token",
    )
    print(f"plot: {output_dir / 'curves.png'}")


run = experiment.entry_point(
    conduct, SCALES, __doc__, __name__, changes=language_modeling.define_changes()
)

if __name__ == "__main__":
    run()
