"""Adam with less of a second moment: one for many entries, or 8 bits for each."""

import math

import keras
import numpy as np
from keras import ops

from trainer.optim.peers.gradients import dense


class _Adam(keras.optimizers.Optimizer):
    """Holds Adam's arguments and its bias correction.

    Args:
        learning_rate: defaults to 0.001.
        beta_1: of the first moment. Defaults to 0.9.
        beta_2: of the second moment. Defaults to 0.999.
        epsilon: added to the root. Defaults to 1e-8.
    """

    def __init__(
        self, learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-8, **kwargs
    ):
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def _move(self, variable, learning_rate, m, v):
        """Takes the step x <- x - rate * m_hat / (sqrt(v_hat) + epsilon)."""
        step = ops.cast(self.iterations + 1, "float32")
        m = m / (1 - ops.power(self.beta_1, step))
        v = v / (1 - ops.power(self.beta_2, step))
        update = learning_rate * m / (ops.sqrt(v) + self.epsilon)
        self.assign_sub(variable, ops.cast(update, variable.dtype))

    def get_config(self):
        own = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return super().get_config() | own


class _BlockAdam(_Adam):
    """Adam with one second moment for each block of a variable's entries.

    v[b] = beta_2 * v[b] + (1 - beta_2) * mean of g**2 over block b
    """

    def _blocks(self, variable):
        """Returns (shape, axes): g**2 in that shape is averaged over these axes."""
        raise NotImplementedError

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momenta = self.add_optimizer_variables(variables, "momentum")
        self._layouts = [self._blocks(variable) for variable in variables]
        self._means = [
            self.add_variable(
                tuple(1 if i in axes else size for i, size in enumerate(shape)),
                name="block_mean",
            )
            for shape, axes in self._layouts
        ]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        shape, axes = self._layouts[index]
        m, v = self._momenta[index], self._means[index]
        g = dense(gradient, variable.shape)
        first = self.beta_1 * ops.cast(m, "float32") + (1 - self.beta_1) * g
        self.assign(m, first)
        g = ops.reshape(g, shape)
        mean = ops.mean(ops.square(g), axis=axes, keepdims=True) if axes else g * g
        self.assign(v, self.beta_2 * v + (1 - self.beta_2) * mean)
        spread = ops.reshape(ops.broadcast_to(v, shape), variable.shape)
        self._move(variable, learning_rate, first, spread)


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class AdamMini(_BlockAdam):
    """Adam with one second moment a token, attention head, neuron or norm.

    Blocks: a row of an embedding; the columns of a head in kernels of queries and
    keys; a column of other kernels (inputs, outputs); a norm's whole gamma. Biases and
    a norm's beta are Adam's.

    Args:
        num_heads: of the attention layers.
        **kwargs: those of Adam.

    Source: Zhang et al., arXiv 2406.16793; as in adam-mini 1.1.1.
    """

    def __init__(self, learning_rate=0.001, num_heads=1, name="adam_mini", **kwargs):
        super().__init__(learning_rate, name=name, **kwargs)
        self.num_heads = num_heads

    def _blocks(self, variable):
        shape, path = tuple(variable.shape), variable.path
        if path.endswith(("bias", "beta")):
            return shape, ()
        if len(shape) < 2:
            return shape, tuple(range(len(shape)))
        if "embedding" in path:
            return shape, (1,)
        if path.endswith(("query/kernel", "key/kernel")):
            if len(shape) == 2:
                shape = (shape[0], self.num_heads, shape[1] // self.num_heads)
            return shape, (0, 2)  # of inputs, heads and what a head has
        return shape, tuple(range(len(shape) - 1))

    def get_config(self):
        return super().get_config() | {"num_heads": self.num_heads}


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class SlimAdam(_BlockAdam):
    """Adam with second moments averaged over one axis of a matrix.

    Averaged over inputs: kernels of queries and keys. Over outputs, the last axis:
    other kernels. Over a row: embeddings. Vectors are Adam's.

    Args: those of Adam.

    Source: Kalra et al., arXiv 2503.01843, Table 1 (the rules that need no
    measurement of the model at hand).
    """

    def __init__(self, learning_rate=0.001, name="slim_adam", **kwargs):
        super().__init__(learning_rate, name=name, **kwargs)

    def _blocks(self, variable):
        shape, path = tuple(variable.shape), variable.path
        if len(shape) < 2:
            return shape, ()
        over_inputs = path.endswith(("query/kernel", "key/kernel"))
        return shape, (0,) if over_inputs else (len(shape) - 1,)


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class Adam8bit(_Adam):
    """Adam whose moments are 8-bit codes, scaled by the largest of each 256.

    A moment is scale * code[i] with one scale a block. The codes are the dynamic
    map: a sign, a power of ten, and a fraction of the bits that are left. Variables
    of fewer than 4,096 entries keep 32 bits, and so do embeddings, whose rare rows
    would lose their second moment.

    Args: those of Adam.

    Source: Dettmers et al., arXiv 2110.02861; as in torchao.
    """

    BLOCK = 256
    SMALLEST = 4096  # entries of a variable that is kept in 8 bits

    def __init__(self, learning_rate=0.001, name="adam_8bit", **kwargs):
        super().__init__(learning_rate, name=name, **kwargs)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._moments = [
            [self._moment(variable) for _ in ("first", "second")]
            for variable in variables
        ]

    def _moment(self, variable):
        size = math.prod(variable.shape)
        small = size < self.SMALLEST or size % self.BLOCK
        if small or "embedding" in variable.path:
            return [self.add_variable(variable.shape, name="moment")]
        blocks = size // self.BLOCK
        return [
            self.add_variable((blocks, self.BLOCK), dtype="uint8", name="codes"),
            self.add_variable((blocks, 1), name="scales"),
        ]

    def update_step(self, gradient, variable, learning_rate):
        g = dense(gradient, variable.shape)
        moments = self._moments[self._get_variable_index(variable)]
        values = zip(moments, (True, False), (self.beta_1, self.beta_2), (g, g * g))
        found = []
        for moment, signed, beta, new in values:
            old = ops.reshape(self._read(moment, signed), variable.shape)
            found.append(beta * old + (1 - beta) * new)
            self._write(moment, signed, found[-1])
        self._move(variable, learning_rate, *found)

    def _read(self, moment, signed):
        if len(moment) == 1:
            return moment[0].value
        codes, scales = moment
        table = ops.convert_to_tensor(dynamic_map(signed))
        return ops.take(table, ops.cast(codes, "int32")) * scales

    def _write(self, moment, signed, values):
        if len(moment) == 1:
            self.assign(moment[0], values)
            return
        codes, scales = moment
        values = ops.reshape(values, codes.shape)
        scale = ops.max(ops.abs(values), axis=1, keepdims=True)
        scale = ops.maximum(scale, 1e-12)
        values = values / scale
        # Halving search for the nearest: 8 look-ups in the middles between codes.
        table = dynamic_map(signed)
        middles = ops.convert_to_tensor((table[1:] + table[:-1]) / 2)
        found = ops.zeros(codes.shape, "int32")
        for bit in (128, 64, 32, 16, 8, 4, 2, 1):
            beyond = values > ops.take(middles, found + bit - 1)
            found = found + bit * ops.cast(beyond, "int32")
        self.assign(codes, ops.cast(found, "uint8"))
        self.assign(scales, scale)


def dynamic_map(signed):
    """Returns the 256 codes of a moment, ascending, in [-1, 1] or [0, 1]."""
    values = [0.0, 1.0]
    for exponent in range(7):
        count = 2 ** (exponent if signed else exponent + 1)
        edges = np.linspace(0.1, 1, count + 1)
        middles = 10.0 ** (exponent - 6) * (edges[1:] + edges[:-1]) / 2
        values += [*middles, *-middles] if signed else [*middles]
    return np.sort(np.array(values, "float32"))
