r"""Measures the test error of a ResNet-18 on CIFAR-10 for each optimizer.

    python -m trainer.experiments.cifar10 --scale=cpu \
        --tmp_dir=FOLDER_OF_cifar10-jpeg.tar.xz --output_dir=cifar10

Images are those of `cifar10-jpeg.tar.xz` in tmp_dir, or else of TFDS' `cifar10` with
tmp_dir as its data_dir. Batch 128, weight decay 5e-4, random crops and flips, a cosine
schedule. Rates are tuned as `comparison` says, on images held out of the training set;
the test error is reported.

Source: arXiv 1902.04620, Section 5 (CIFAR-10).
"""

import dataclasses
import pathlib

import numpy as np

from trainer.errors import UsageError
from trainer.experiments import experiment

CLASSES = 10
ENTRIES = ("sgd", "momentum", "adagrad", "adam", "et1", "et2", "et3", "etinf")
PAST_THE_PAPER = ("et2_rank1", "et2_orthogonal", "et2_orthogonal_momentum")
# Rates to start the search from.
CONSTANTS = {
    "sgd": 0.3,
    "momentum": 0.06,
    "adam": 0.009,
    "et2_rank1": 0.003,
    "et2_orthogonal": 0.009,
    "et2_orthogonal_momentum": 0.009,
}
MEAN = np.array([0.4913, 0.4821, 0.4465], "float32")
DEVIATION = np.array([0.2452, 0.2428, 0.2628], "float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(experiment.Scale):
    width: int = 64  # channels of the first stage
    images: int = 50_000  # of the training set that are used
    held_out: int = 5000  # of these, for the choice of the rate
    batch: int = 128
    weight_decay: float = 5e-4


PAPER = Scale(
    entries=(*ENTRIES, *PAST_THE_PAPER),
    train_steps=200 * 45_000 // 128,
    trials=10,
    seeds=3,
)
SCALES = {
    "smoke": Scale(
        entries=("sgd", "et2_orthogonal"),
        train_steps=4,
        width=4,
        images=500,
        held_out=100,
    ),
    "cpu": dataclasses.replace(
        PAPER, train_steps=500, trials=3, seeds=1, width=8, images=25_000
    ),
    "gpu": dataclasses.replace(PAPER, train_steps=30 * 45_000 // 128, trials=4),
    "paper": PAPER,
}


def load(tmp_dir):
    """Returns {"train" or "test": (images (N, 32, 32, 3) uint8, labels (N,))}."""
    archive = pathlib.Path(tmp_dir) / "cifar10-jpeg.tar.xz"
    splits = _read_archive(archive) if archive.is_file() else _read_tfds(tmp_dir)
    order = np.random.default_rng(0)
    shuffled = {}
    for name, (images, labels) in splits.items():
        chosen = order.permutation(len(labels))
        shuffled[name] = images[chosen], labels[chosen]
    return shuffled


def _read_archive(archive):
    """Reads train/CLASS/NNNN.jpg and test/CLASS/NNNN.jpg; classes are sorted."""
    import tarfile

    from PIL import Image

    found = {"train": {}, "test": {}}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                split, label, _ = pathlib.PurePath(member.name).parts[-3:]
                with tar.extractfile(member) as file:  # pyright: ignore[reportOptionalContextManager]
                    image = np.asarray(Image.open(file))
                found[split].setdefault(label, []).append(image)
    return {
        split: (
            np.concatenate([np.stack(images) for _, images in sorted(classes.items())]),
            np.repeat(
                np.arange(len(classes)), [len(c) for _, c in sorted(classes.items())]
            ),
        )
        for split, classes in found.items()
    }


def _read_tfds(tmp_dir):
    import tensorflow_datasets as tfds

    builder = tfds.builder("cifar10", data_dir=tmp_dir)
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UsageError(
            f"{tmp_dir} has neither cifar10-jpeg.tar.xz nor TFDS' cifar10, which could "
            f"not be downloaded: {error}"
        ) from error
    splits = {}
    for split in ("train", "test"):
        examples = list(tfds.as_numpy(builder.as_data_source(split=split)))
        images = np.stack([example["image"] for example in examples])
        splits[split] = images, np.array([example["label"] for example in examples])
    return splits


def resnet18(width):
    """Returns a ResNet-18 for images of 32x32, as He et al. made it for CIFAR.

    It has a stem of 3x3, no pooling, and 4 stages of 2 blocks; `width` is the number
    of channels of the first stage.
    """
    import keras
    from keras import layers

    def convolution(x, filters, size, strides=1):
        return layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)

    image = x = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / (255 * DEVIATION), -MEAN / DEVIATION)(x)
    x = layers.RandomTranslation(4 / 32, 4 / 32, fill_mode="constant")(x)
    x = layers.RandomFlip("horizontal")(x)
    x = layers.ReLU()(layers.BatchNormalization()(convolution(x, width, 3)))
    for filters in (width, 2 * width, 4 * width, 8 * width):
        for block in range(2):
            strides = 2 if block == 0 and filters > width else 1
            y = convolution(x, filters, 3, strides)
            y = layers.ReLU()(layers.BatchNormalization()(y))
            y = layers.BatchNormalization()(convolution(y, filters, 3))
            if strides > 1:
                x = layers.BatchNormalization()(convolution(x, filters, 1, strides))
            x = layers.ReLU()(layers.add([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(CLASSES)(x))


def train(scale, data, name, constant, seed, on_evaluation):
    """Trains once and returns the record; its "loss" is the held-out error."""
    import keras

    from trainer import hparams
    from trainer.experiments import fitting
    from trainer.optim import catalog

    keras.backend.clear_session(free_memory=True)
    keras.utils.set_random_seed(seed)
    images, labels = data["train"]
    model = resnet18(scale.width)
    schedule = keras.optimizers.schedules.CosineDecay(constant, scale.train_steps)
    settings = hparams.HParams(optimizer=name, weight_decay=scale.weight_decay)
    model.compile(
        optimizer=catalog.create_at(schedule, settings, model.trainable_variables),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile="auto",
    )
    rng = np.random.default_rng(seed)

    def batches():
        count = scale.images - scale.held_out
        while True:
            order = rng.permutation(count) + scale.held_out
            for start in range(0, count - scale.batch + 1, scale.batch):
                chosen = order[start : start + scale.batch]
                yield images[chosen], labels[chosen]

    def error(split, rows):
        some_images, some_labels = data[split]
        values = model.evaluate(
            some_images[:rows], some_labels[:rows], 500, verbose=0, return_dict=True
        )
        return 100 * (1 - values["accuracy"])

    record = fitting.fit(
        model,
        batches(),
        scale.train_steps,
        f"{name} c={constant:.3g} seed {seed}",
        lambda: error("train", scale.held_out),
        on_evaluation,
    )
    return record | {"test_error": error("test", None)}


def conduct(scale, output_dir):
    from trainer import registry
    from trainer.experiments import comparison
    from trainer.experiments import report

    for name in scale.entries:
        registry.optimizers.get(name)
    data = load(scale.tmp_dir)
    names = ("train_steps", "width", "images", "batch", "weight_decay")
    compared = comparison.Comparison(
        output_dir,
        {name: getattr(scale, name) for name in names},
        scale,
        lambda name: CONSTANTS.get(name, 0.03),
        lambda *arguments: train(scale, data, *arguments),
    )
    finished = {name: compared.records(name) for name in scale.entries}
    columns = ("optimizer", "rate", "state scalars", "of the parameters")
    columns += ("held-out error, %", "test error, %")
    rows = []
    for name, records in finished.items():
        scalars = records[0]["state_scalars"]
        rows.append(
            (
                name,
                f"{records[0]['c']:.3g}",
                scalars,
                f"{100 * scalars / records[0]['parameters']:.3g}%",
                report.mean_and_spread([r["loss"] for r in records], 2),
                report.mean_and_spread([r["test_error"] for r in records], 2),
            )
        )
    report.publish(report.markdown(columns, rows), output_dir)
    report.memory_plot(
        output_dir / "test_error",
        {
            name: (records[0]["state_scalars"], [r["test_error"] for r in records])
            for name, records in finished.items()
        },
        "test error, %",
    )
    print(f"plot: {output_dir / 'test_error.png'}")


run = experiment.entry_point(conduct, SCALES, __doc__, __name__)

if __name__ == "__main__":
    run()
