"""Fine-tunes a BERT of KerasHub, with nothing but `optimizer=` changed.

    pip install --no-deps keras-hub kagglehub kagglesdk
    pip install regex rich tokenizers
    python -m examples.keras_hub_finetuning

The model has the shape of a preset and random weights, so that nothing is downloaded:
with the preset's weights, replace `BertBackbone(**PRESET)` by
`keras_hub.models.BertBackbone.from_preset("bert_tiny_en_uncased")`.
"""

import keras
import numpy as np

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import memory_report

# Of the preset bert_tiny_en_uncased.
VOCABULARY = 30522
PRESET = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 128,
    "intermediate_dim": 512,
}


def sentences(count, seed, length=16):
    """Returns token ids, and whether they hold a token of one group or of another."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1000, VOCABULARY, (count, length))
    label = rng.integers(2, size=count)
    places = rng.integers(1, length, size=count)
    kinds = rng.integers(10, size=count)
    ids[np.arange(count), places] = np.where(label, 100, 200) + kinds
    mask = np.ones_like(ids)
    return {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": mask}, label


def main(count=4096, epochs=1):
    """Prints, and returns by optimizer, its state and the accuracy on new sentences."""
    import keras_hub

    optimizers = {
        "adam": keras.optimizers.Adam(0.0005),
        "orthogonal": ExtremeTensoring.orthogonal(0.0005),
    }
    found = {}
    for name, optimizer in optimizers.items():
        keras.utils.set_random_seed(0)
        model = keras_hub.models.BertTextClassifier(
            keras_hub.models.BertBackbone(**PRESET), num_classes=2, preprocessor=None
        )
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(*sentences(count, 0), batch_size=32, epochs=epochs, verbose=0)
        accuracy = model.evaluate(*sentences(1000, 1), verbose=0)[1]
        asked = optimizer if isinstance(optimizer, ExtremeTensoring) else name
        (total,) = memory_report(model, [asked]).totals.values()
        size = total["bytes"]
        found[name] = size, accuracy
        print(f"{name}: {size:,} bytes of state, {accuracy:.1%} right")
    return found


if __name__ == "__main__":
    main()
