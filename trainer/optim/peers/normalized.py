"""Matrices that move along this step's gradient, normalized: hardly any state.

What is no hidden matrix, embeddings and vectors, is Adam's with their authors. With
`rest="et"` it is ours, rank-one extreme tensoring over the folded rows of an embedding
and one scalar a vector, so that the treatments of matrices can be compared.

Keras' kernels are (inputs, outputs): the transpose of the papers' matrices.
"""

import keras
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.matrix_view import matrix_view
from extreme_tensoring_tf.matrix_view import orthogonalized
from extreme_tensoring_tf.newton_schulz import polar_factors
from extreme_tensoring_tf.tensor_rules import EMBEDDINGS
from trainer.optim.peers.gradients import dense

_STEPS = 8  # Newton-Schulz: to the polar factor itself


class _Normalized(keras.optimizers.Optimizer):
    """Chooses the matrices, and leaves the rest to Adam or to extreme tensoring.

    x <- x - rate * scale * direction(g)

    Args:
        learning_rate: defaults to 0.001.
        rest: "adam", or "et" for rank-one extreme tensoring.
        scale: of the directions of matrices.
        beta_1, beta_2, epsilon: Adam's. Default to 0.9, 0.999, 1e-8.
    """

    def __init__(
        self,
        learning_rate=0.001,
        rest="adam",
        scale=1.0,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        self._own = {
            "rest": rest,
            "scale": scale,
            "beta_1": beta_1,
            "beta_2": beta_2,
            "epsilon": epsilon,
        }

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        named = [(v.path, tuple(v.shape)) for v in variables]
        self._is_matrix = self._matrices(named)
        self._slots = [
            self._matrix_slots(v) if matrix else self._rest_slots(v)
            for v, matrix in zip(variables, self._is_matrix)
        ]
        rest = [v for v, matrix in zip(variables, self._is_matrix) if not matrix]
        if self._own["rest"] == "et" and rest:
            self._et = ExtremeTensoring(
                level="inf", tensor_dims={EMBEDDINGS: ("et2", 1)}
            )
            self._et.build(rest)
            for variable in self._et.variables[2:]:  # not iterations and rate
                self._track_variable(variable)

    def _matrices(self, named):
        """Returns for each (path, shape) whether it is moved by `_direction`."""
        return orthogonalized(named, True)

    def _matrix_slots(self, variable):
        """Returns the slots of a matrix."""
        return []

    def _rest_slots(self, variable):
        if self._own["rest"] == "et":
            return []
        return [self.add_variable(variable.shape, name=n) for n in ("mean", "square")]

    def _direction(self, g, slots):
        """Returns the direction of a matrix, and moves its slots.

        Args:
            g: gradient, (inputs, outputs).
            slots: those of `_matrix_slots`.
        """
        raise NotImplementedError

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        slots = self._slots[index]
        if self._is_matrix[index]:
            g = dense(gradient, matrix_view(variable.shape).view)
            step = self._own["scale"] * self._direction(g, slots)
            step = ops.reshape(step, variable.shape)
        elif self._own["rest"] == "et":
            self._et.update_step(gradient, variable, learning_rate)
            return
        else:
            step = self._adam(dense(gradient, variable.shape), *slots)
        self.assign_sub(variable, ops.cast(learning_rate * step, variable.dtype))

    def _adam(self, g, mean, square):
        own = self._own
        self.assign(mean, own["beta_1"] * mean + (1 - own["beta_1"]) * g)
        self.assign(
            square, own["beta_2"] * square + (1 - own["beta_2"]) * ops.square(g)
        )
        t = ops.cast(self.iterations + 1, "float32")
        corrected = square.value / (1 - ops.power(own["beta_2"], t))
        rate = 1 / (1 - ops.power(own["beta_1"], t))
        return rate * mean.value / (ops.sqrt(corrected) + own["epsilon"])

    def get_config(self):
        return super().get_config() | self._own


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class SWAN(_Normalized):
    """The polar factor of the gradient whose entries were standardized by outputs.

    direction = |N| / |P| * P,   P = (N N^T)^(-1/2) N,   N = (g - mean) / deviation

    where mean and deviation of an output are over its inputs, and | | is Frobenius'.

    Source: Ma et al., arXiv 2412.13148, Algorithm 1; Adam on embeddings and head.
    """

    def __init__(self, learning_rate=0.001, name="swan", **kwargs):
        super().__init__(learning_rate, name=name, **kwargs)

    def _direction(self, g, slots):
        deviation = ops.std(g, axis=0, keepdims=True)
        g = (g - ops.mean(g, axis=0, keepdims=True)) / (deviation + 1e-30)
        # Outputs sum to 0 over inputs: what a square matrix lacks is rounding alone.
        factor = polar_factors(g, _STEPS, damping=1e-5)
        return factor * (ops.norm(g) / (ops.norm(factor) + 1e-30))


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class SinkGD(_Normalized):
    """The gradient whose rows and columns were normalized by turns.

    g <- g / RMS(row),  g <- g / RMS(column),    `iterations` times

    Args:
        iterations: defaults to 5.
        scale: defaults to 0.05, the authors'.

    Source: Scetbon et al., arXiv 2502.06742, Algorithms 3 and 4; Adam on embeddings
    and head.
    """

    def __init__(
        self, learning_rate=0.001, iterations=5, scale=0.05, name="sinkgd", **kwargs
    ):
        super().__init__(learning_rate, scale=scale, name=name, **kwargs)
        self._own["iterations"] = iterations

    def _direction(self, g, slots):
        g = g / (ops.max(ops.abs(g)) + 1e-30)
        for _ in range(self._own["iterations"]):
            for axis in (0, 1):  # an output is a column here, a row of the paper's
                mean = ops.mean(ops.square(g), axis=axis, keepdims=True)
                g = g * ops.rsqrt(mean + 1e-30)
        return g


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class SCALE(_Normalized):
    """Gradients normalized by output, and momentum on the last layer alone.

    direction = m / |m| by outputs, m = g; m = momentum * m + (1 - momentum) * g for the
    embedding, which is the last layer of a model that ties it.

    Args:
        momentum: defaults to 0.9.

    Source: Glentis et al., arXiv 2506.16659, Algorithm 1; Adam on vectors. The output
    dimension of the embedding, as the last layer, is the vocabulary.
    """

    def __init__(self, learning_rate=0.001, momentum=0.9, name="scale", **kwargs):
        super().__init__(learning_rate, name=name, **kwargs)
        self._own["momentum"] = momentum

    def _matrices(self, named):
        if self._own["rest"] == "et":
            return super()._matrices(named)
        return [len(shape) > 1 for _, shape in named]

    def _matrix_slots(self, variable):
        if "embedding" not in variable.path:
            return []
        return [self.add_variable(variable.shape, name="momentum")]

    def _direction(self, g, slots):
        axis = 0
        for momentum in slots:
            beta, axis = self._own["momentum"], 1
            self.assign(momentum, beta * momentum + (1 - beta) * g)
            g = momentum.value
        norm = ops.sqrt(ops.sum(ops.square(g), axis=axis, keepdims=True))
        return g / (norm + 1e-30)


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class RACS(_Normalized):
    """The gradient scaled by rows and columns, whose scales are averaged over steps.

    s[j] = sum_i q[i] g[i, j]**2 / |q|**2,  q[i] = sum_j s[j] g[i, j]**2 / |s|**2
    direction = limit(g / sqrt(q s)),       averages of s and q

    where the two are iterated 5 times from q = 1, and `limit` lets the norm of the
    direction grow by 1 % a step at most.

    Args:
        beta: of the averages. Defaults to 0.9.
        limit: defaults to 1.01.
        scale: defaults to 0.05.

    Source: Gong et al., arXiv 2502.07752, Algorithm 1; Adam on embeddings and head.
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta=0.9,
        limit=1.01,
        scale=0.05,
        name="racs",
        **kwargs,
    ):
        super().__init__(learning_rate, scale=scale, name=name, **kwargs)
        self._own |= {"beta": beta, "limit": limit}

    def _matrix_slots(self, variable):
        rows, columns = matrix_view(variable.shape).view
        shapes = {"rows": (rows,), "columns": (columns,), "norm": ()}
        return [self.add_variable(shape, name=n) for n, shape in shapes.items()]

    def _direction(self, g, slots):
        rows, columns, norm = slots
        squares = ops.square(g)
        q = ops.ones((g.shape[0],))
        s = None
        for _ in range(5):
            s = ops.matmul(q, squares) / (ops.sum(ops.square(q)) + 1e-30)
            q = ops.matmul(squares, s) / (ops.sum(ops.square(s)) + 1e-30)
        beta = self._own["beta"]
        self.assign(rows, beta * rows + (1 - beta) * q)
        self.assign(columns, beta * columns + (1 - beta) * s)
        scales = ops.expand_dims(rows.value, 1) * columns.value
        direction = g * ops.rsqrt(scales + 1e-30)
        now = ops.norm(direction)
        limit = self._own["limit"]
        bounded = limit / ops.maximum(now / (norm + 1e-30), limit)
        factor = ops.where(norm > 0, bounded, 1.0)  # what had no gradient has no limit
        self.assign(norm, factor * now)
        return factor * direction


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class NorMuon(_Normalized):
    """Muon whose outputs are normalized by moving averages of their squares.

    m <- beta_1 m + (1 - beta_1) g,   U = polar((1 - beta_1) g + beta_1 m)
    v[j] <- beta_2 v[j] + (1 - beta_2) mean_i U[i, j]**2,    direction ~ U / sqrt(v)

    with the norm of U, times `scale` * sqrt(max(inputs, outputs)).

    Args:
        momentum: beta_1. Defaults to 0.95.
        averaged: beta_2. Defaults to 0.95.
        scale: defaults to 0.2, which makes Adam's rates fit (arXiv 2502.16982).

    Source: Li et al., arXiv 2510.05491, Algorithm 1; Adam on embeddings and head.
    """

    def __init__(
        self,
        learning_rate=0.001,
        momentum=0.95,
        averaged=0.95,
        scale=0.2,
        name="normuon",
        **kwargs,
    ):
        super().__init__(learning_rate, scale=scale, name=name, **kwargs)
        self._own |= {"momentum": momentum, "averaged": averaged}

    def _matrix_slots(self, variable):
        view = matrix_view(variable.shape).view
        return [
            self.add_variable(view, name="momentum"),
            self.add_variable((view[1],), name="square"),
        ]

    def _direction(self, g, slots):
        momentum, square = slots
        beta, averaged = self._own["momentum"], self._own["averaged"]
        self.assign(momentum, beta * momentum + (1 - beta) * g)
        factor = polar_factors((1 - beta) * g + beta * momentum.value, _STEPS)
        mean = ops.mean(ops.square(factor), axis=0)
        self.assign(square, averaged * square + (1 - averaged) * mean)
        scaled = factor / (ops.sqrt(square.value) + 1e-10)
        scaled = scaled * (ops.norm(factor) / (ops.norm(scaled) + 1e-10))
        return scaled * max(g.shape) ** 0.5
