"""The README.md of an export: what the model is, how it was made, how to call it."""

import datetime

from extreme_tensoring_tf import memory
from trainer.optim import optimizer_state
from trainer.runs import run_folder

_USE = {
    "saved_model": """\
```python
import sentencepiece, tensorflow as tf
model = tf.saved_model.load("FOLDER")
vocabulary = sentencepiece.SentencePieceProcessor(
    model_file="FOLDER/assets/tokenizer.model")
ids = vocabulary.encode("The president of the")
score = model.signatures["score"](ids=tf.constant([ids + [1]]))["nats"]
logits = model.signatures["next_token_logits"](ids=tf.constant([ids]))["logits"]
more = model.signatures["generate"](
    ids=tf.constant([ids]), length=tf.constant(40), temperature=tf.constant(0.8),
    top_k=tf.constant(40), seed=tf.constant(0))["ids"]
print(vocabulary.decode([int(i) for i in more[0] if i > 1]))
```

Ids are int32. A batch is filled up with 0; 1 ends a sentence. `score` gives nats
(-log p) of each token, for rows of at most {max_length} tokens. `next_token_logits`,
which is also `serving_default`, gives the logits of the token that follows, `generate`
the tokens that follow, for rows of fewer; an empty row asks for a sentence's start.""",
    "keras": """\
```python
import keras
import {module}  # the model's class
model = keras.saving.load_model("FOLDER/model.keras")
```

It maps rows of token ids to the logits of each from those before it. It was trained on
rows of at most {max_length}.""",
    "onnx": """\
```python
import onnxruntime
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
```

It maps rows of {max_length} token ids to the logits of each from those before it.""",
}


def text(trained, export_format, evaluations, command) -> str:
    """Returns the card as Markdown.

    Args:
        trained: a `trained_model.TrainedModel`.
        export_format: of `exporting.FORMATS`.
        evaluations: {split: `evaluation.Evaluation`}.
        command: that made the export, or None.
    """
    use = _USE[export_format].format(
        max_length=trained.max_length, module=type(trained.model).__module__
    )
    optimizer = memory.inner(trained.model.optimizer)
    scalars = optimizer_state.state_scalars(optimizer)
    parameters = trained.model.count_params()
    config = trained.config
    hparams = "\n".join(f"| {k} | {v} |" for k, v in config["hparams"].items())
    splits = "\n".join(
        f"| {name} | {s.sentences:,} | {s.words:,} | {s.tokens:,} |"
        for name, s in trained.description.splits.items()
    )
    held_out = "\n".join(
        f"| {split} | {e.perplexity_per_word:,.2f} | {e.perplexity_per_token:,.2f} | "
        f"{e.nats_per_token:.4f} | {e.sentences:,} of {_all(trained, split):,} |"
        for split, e in evaluations.items()
    )
    starts = "\n".join(
        f"{start['time']}  {' '.join(start['command'])}  # git {start['git']}"
        for start in run_folder.starts(run_folder.of_checkpoint(trained.path))
    )
    return f"""\
# {config["model"]} trained on {config["problem"]}

{parameters:,} parameters, {trained.description.vocab_size:,} SentencePiece subwords,
rows of {trained.max_length} tokens, {config["dtype"]}. From `{trained.path.name}`,
after {int(trained.model.optimizer.iterations):,} updates.

## Use

{use}

## Held-out text

| split | perplexity per word | per token | nats per token | sentences |
|---|---|---|---|---|
{held_out or "| not evaluated | | | | |"}

Ends of sentences count as words and as tokens.

## Data

| split | sentences | words | tokens |
|---|---|---|---|
{splits}

Checksum of the vocabulary (SHA-256): `{trained.description.tokenizer_sha256}`.

## Training

Optimizer `{optimizer.name}`, {scalars:,} state scalars: one for
{parameters / max(scalars, 1):,.0f} parameters. Adam would keep {2 * parameters:,}.

| hyperparameter | value |
|---|---|
{hparams}

```
{starts or "(no record of the run's starts)"}
```

Exported {datetime.date.today()} with Keras {_keras_version()} by

```
{command or "(from Python)"}
```
"""


def _all(trained, split):
    return trained.description.splits[split].sentences


def _keras_version():
    import keras

    return keras.__version__
