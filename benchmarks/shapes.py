"""Shapes of the variables that the optimizers are measured on."""


def transformer(layers, hidden, filter_size, vocab_size):
    """Returns embedding, matrices, biases and norms of a Transformer."""
    shapes = [(vocab_size, hidden)]
    for _ in range(layers):
        shapes += [(hidden, hidden)] * 4
        shapes += [(hidden, filter_size), (filter_size,)]
        shapes += [(filter_size, hidden), (hidden,)]
        shapes += [(hidden,)] * 4
    return [*shapes, (hidden,), (hidden,)]


def resnet18(classes=10):
    """Returns convolutions and batch-norm vectors, as in He et al. (CIFAR form)."""
    shapes, channels = [(3, 3, 3, 64), (64,), (64,)], 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            convolutions = [(3, 3, channels, width), (3, 3, width, width)]
            if block == 0 and channels != width:
                convolutions.append((1, 1, channels, width))
            for shape in convolutions:
                shapes += [shape, (width,), (width,)]
            channels = width
    return [*shapes, (512, classes), (classes,)]


def square(parameters):
    """Returns one matrix of about so many parameters, with 1,024 columns."""
    return [(parameters // 1024, 1024)]


PRESETS = {
    "transformer_23m": transformer(6, 512, 2048, 8192),
    "transformer_300_variables": transformer(25, 128, 512, 8192)[:300],
    "resnet18": resnet18(),
    "gpt2_124m": transformer(12, 768, 3072, 50257),
    "transformer_350m": transformer(24, 1024, 4096, 50257),
    "transformer_1b": transformer(19, 2048, 8192, 32768),
    "embedding_1m": [(1_000_000, 64)],
    "1e6": square(10**6),
    "1e7": square(10**7),
    "1e8": square(10**8),
    "1e9": square(10**9),
}
