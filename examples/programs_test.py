"""Each example runs on little data, learns, and keeps the state that it prints."""

import importlib.util

import keras
import pytest

from examples import image_classification
from examples import jax_loop
from examples import keras_hub_finetuning
from examples import lora
from examples import preset_memory
from examples import recommender
from examples import torch_loop

BACKEND = keras.backend.backend()
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="uses TensorFlow")
needs_keras_hub = pytest.mark.skipif(
    not importlib.util.find_spec("keras_hub"), reason="keras-hub is not installed"
)


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_image_classification(dtype):
    found = image_classification.main(dtype, count=1024, epochs=3)
    (adam, _), (ours, accuracy) = found.values()
    assert ours < adam / 1000
    assert accuracy > 0.5  # 0.25 is chance


@on_tensorflow
def test_both_networks_of_the_gan_learn():
    from examples import gan  # which imports TensorFlow

    distance, covered = gan.main(steps=800)
    assert distance < 0.15  # 0.9 of a generator that has learnt nothing
    assert covered > 0.8


def test_recommender():
    assert recommender.main(users=10_000, items=500, count=50_000) > 0.7


def test_lora():
    before, after = lora.main(epochs=3, count=2048)
    assert after > before + 0.2


@pytest.mark.skipif(BACKEND != "jax", reason="uses JAX")
def test_jax_loop():
    first, last = jax_loop.main(steps=100)
    assert last < first / 10


@pytest.mark.skipif(BACKEND != "torch", reason="uses torch")
def test_torch_loop():
    first, last = torch_loop.main(steps=100)
    assert last < first / 10


@needs_keras_hub
# Of Keras, which takes arrays by way of grain.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
def test_keras_hub_finetuning():
    (adam, _), (ours, accuracy) = keras_hub_finetuning.main(count=4096).values()
    assert ours < adam / 1000
    assert accuracy > 0.9


@needs_keras_hub
def test_presets_have_their_parameters():
    """What it reads is checked against KerasHub's own number of parameters."""
    head, gpt2, gemma, llama = preset_memory.main()
    assert gpt2[:3] == ("gpt2_extra_large_en", "1,557,611,200", "12,460.89")
