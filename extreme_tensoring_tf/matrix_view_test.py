"""Which variables are orthogonalized, on the layers that Keras and others name."""

import keras
import pytest
from keras import layers

from extreme_tensoring_tf.matrix_view import matrix_view
from extreme_tensoring_tf.matrix_view import orthogonalized
from extreme_tensoring_tf.variables import path_of


@pytest.mark.parametrize(
    "shape, view",
    [
        ((512, 2048), (512, 2048)),
        ((2048, 512), (2048, 512)),
        ((1, 7), (1, 7)),
        ((3, 3, 64, 128), (576, 128)),  # a convolution
        ((5, 20, 30), (100, 30)),  # in one dimension
        ((3, 3, 64, 1), (9, 64)),  # depthwise
        ((768, 12, 64), (768, 768)),  # queries, keys, values
        ((12, 64, 768), (768, 768)),  # the output of attention
        ((2, 2, 2), (4, 2)),  # of two as square, the latest split
    ],
)
def test_views(shape, view):
    index = matrix_view(shape)
    assert index.view == view
    assert index.dims == index.labels == () and index.state_size == 0


def kernels(layer, *inputs):
    """Returns {own name: whether orthogonalized} of a layer's variables."""
    model_input = [keras.Input(shape, dtype=dtype) for shape, dtype in inputs]
    model = keras.Model(model_input, layer(*model_input))
    named = [(path_of(v), tuple(v.shape)) for v in model.trainable_variables]
    return {
        path.split("/", 1)[1]: chosen
        for (path, _), chosen in zip(named, orthogonalized(named, True), strict=True)
    }


IDS, WORDS, IMAGE = ((7,), "int32"), ((7, 8), "float32"), ((9, 9, 4), "float32")


@pytest.mark.parametrize(
    "layer, inputs, expected",
    [
        (layers.Dense(5, name="embedding_projection"), [WORDS], ["kernel"]),
        (
            layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
            [WORDS],
            ["kernel"],
        ),
        (layers.Conv2D(6, 3), [IMAGE], ["kernel"]),
        (layers.DepthwiseConv2D(3), [IMAGE], ["kernel"]),
        (
            layers.SeparableConv2D(6, 3),
            [IMAGE],
            ["depthwise_kernel", "pointwise_kernel"],
        ),
        (layers.LayerNormalization(), [WORDS], []),
        (layers.Embedding(11, 6), [IDS], []),
        (
            layers.MultiHeadAttention(2, 4),
            [WORDS, WORDS],
            [f"{n}/kernel" for n in ("query", "key", "value", "attention_output")],
        ),
        (layers.GRU(5), [WORDS], ["gru_cell/kernel", "gru_cell/recurrent_kernel"]),
    ],
)
def test_kernels_are_told_from_embeddings(layer, inputs, expected):
    found = kernels(layer, *inputs)
    assert [name for name, chosen in found.items() if chosen] == expected
    assert len(found) > len(expected)


def test_a_tied_embedding_is_none():
    """As the layer of Keras and KerasHub that serves as the output, too."""
    embedding = layers.ReversibleEmbedding(11, 6, tie_weights=False)
    ids = keras.Input((7,), dtype="int32")
    model = keras.Model(ids, embedding(embedding(ids), reverse=True))
    named = [(v.path, tuple(v.shape)) for v in model.trainable_variables]
    assert [n.rpartition("/")[2] for n, _ in named] == [
        "embeddings",
        "reverse_embeddings",
    ]
    assert orthogonalized(named, True) == [False, False]


def test_a_language_model_of_keras_hub():
    hub = pytest.importorskip("keras_hub")
    model = hub.models.GPT2CausalLM(
        preprocessor=None,
        backbone=hub.models.GPT2Backbone(
            vocabulary_size=50,
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            max_sequence_length=10,
        ),
    )
    named = [(v.path, tuple(v.shape)) for v in model.trainable_variables]
    chosen = [path for (path, _), c in zip(named, orthogonalized(named, True)) if c]
    assert len(chosen) == 6 and not any("embedding" in path for path in chosen)


VARIABLES = [("a/kernel", (3, 4)), ("a/bias", (4,)), ("b/table", (5, 6)), ("c", (0, 3))]


@pytest.mark.parametrize(
    "rule, expected",
    [
        (None, [0, 0, 0, 0]),
        (False, [0, 0, 0, 0]),
        ([], [0, 0, 0, 0]),
        (True, [1, 0, 0, 0]),
        (["^a/"], [1, 0, 0, 0]),  # of its matrices
        ("table", [0, 0, 1, 0]),
        (["table$", "^a/"], [1, 0, 1, 0]),
        ([".*"], [1, 0, 1, 0]),
    ],
)
def test_rules(rule, expected):
    assert orthogonalized(VARIABLES, rule) == [bool(e) for e in expected]


def test_kernels_without_their_names_are_told_of():
    """As in the layers that wrap models of torch or JAX. Embeddings are none."""
    with pytest.warns(UserWarning, match="no matrix whose .* 1 others, 'variable'"):
        assert orthogonalized([("variable", (8, 8))], True) == [False]
    named = [("embedding/embeddings", (8, 8)), ("bias", (8,))]
    assert orthogonalized(named, True) == [False, False]


def test_rules_that_match_nothing():
    with pytest.raises(ValueError, match=r"pattern '\(' is not a regular expression"):
        orthogonalized(VARIABLES, ["("])
    with pytest.raises(ValueError, match="'bias' matches 'a/bias' of shape"):
        orthogonalized(VARIABLES, ["bias"])
    with pytest.warns(UserWarning, match="'frozen' matches no trainable variable"):
        orthogonalized(VARIABLES, ["frozen"])
