"""Moments kept as a few vectors: along axes, or factors of a matrix."""

import math

import keras
from keras import ops

from trainer.optim.peers.gradients import dense


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class SM3(keras.optimizers.Optimizer):
    """Bounds AdaGrad's sums by maxima over slices, one vector per axis.

    nu[I]  = min_i mu_i[I_i] + g[I]**2
    x[I]  <- x[I] - rate * m[I],      m = momentum * m + (1 - momentum) * g / sqrt(nu)
    mu_i[j] = max over I with I_i = j of nu[I]

    Args:
        learning_rate: defaults to 0.1.
        momentum: keeps m, of full size, if positive. Defaults to 0.
        epsilon: added to nu. Defaults to 1e-8.

    Source: Anil, Gupta, Koren, Singer, arXiv 1901.11150, SM3-II; as in Optax.
    """

    def __init__(
        self, learning_rate=0.1, momentum=0.0, epsilon=1e-8, name="sm3", **kwargs
    ):
        super().__init__(learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._maxima = [
            [self.add_variable((n,), name=f"maxima_{i}") for i, n in enumerate(v.shape)]
            or [self.add_variable((), name="maxima")]
            for v in variables
        ]
        if self.momentum:
            self._momenta = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        maxima = self._maxima[index]
        rank = max(1, len(variable.shape))
        axes = [tuple(j for j in range(rank) if j != i) for i in range(rank)]
        g = dense(gradient, variable.shape)
        nu = ops.square(g)
        bound = ops.expand_dims(maxima[0], axes[0]) if axes[0] else maxima[0].value
        for mu, others in zip(maxima[1:], axes[1:]):
            bound = ops.minimum(bound, ops.expand_dims(mu, others))
        nu = nu + bound
        step = ops.where(nu > 0, g * ops.rsqrt(nu + self.epsilon), 0.0)
        if self.momentum:
            m = self._momenta[index]
            step = self.momentum * ops.cast(m, "float32") + (1 - self.momentum) * step
            self.assign(m, step)
        for mu, others in zip(maxima, axes):
            self.assign(mu, ops.max(nu, axis=others) if others else nu)
        self.assign_sub(variable, ops.cast(learning_rate * step, variable.dtype))

    def get_config(self):
        own = {"momentum": self.momentum, "epsilon": self.epsilon}
        return super().get_config() | own


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class CAME(keras.optimizers.Optimizer):
    """Adafactor's update, divided by how far it is from its own moving average.

    v = factored moving average of g**2 + epsilon,     u = g / sqrt(v)
    u <- u / max(1, rms(u) / clip_threshold),          m = beta_1 m + (1 - beta_1) u
    s = factored moving average of (u - m)**2 + epsilon_residual
    x <- x - rate * m / sqrt(s)

    where a factored average keeps means of rows and columns (the last two axes), and
    variables of fewer axes keep v whole and are stepped by m.

    Args:
        learning_rate: defaults to 2e-4.
        beta_1, beta_2, beta_3: of m, v and s. Default to 0.9, 0.999, 0.9999.
        epsilon, epsilon_residual: default to 1e-30 and 1e-16.
        clip_threshold: defaults to 1.

    Source: Luo et al., arXiv 2307.02047, Algorithm 2; as in came-pytorch.
    """

    def __init__(
        self,
        learning_rate=2e-4,
        beta_1=0.9,
        beta_2=0.999,
        beta_3=0.9999,
        epsilon=1e-30,
        epsilon_residual=1e-16,
        clip_threshold=1.0,
        name="came",
        **kwargs,
    ):
        super().__init__(learning_rate, name=name, **kwargs)
        self._own = {
            "beta_1": beta_1,
            "beta_2": beta_2,
            "beta_3": beta_3,
            "epsilon": epsilon,
            "epsilon_residual": epsilon_residual,
            "clip_threshold": clip_threshold,
        }

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._momenta = self.add_optimizer_variables(variables, "momentum")
        self._squares = [self._averages(v.shape, "square") for v in variables]
        self._residuals = [
            self._averages(v.shape, "residual") if len(v.shape) > 1 else None
            for v in variables
        ]

    def _averages(self, shape, name):
        if len(shape) < 2:
            return [self.add_variable(shape, name=name)]
        return [
            self.add_variable(shape[:-1], name=f"{name}_rows"),
            self.add_variable((*shape[:-2], shape[-1]), name=f"{name}_columns"),
        ]

    def update_step(self, gradient, variable, learning_rate):
        own = self._own
        index = self._get_variable_index(variable)
        g = dense(gradient, variable.shape)
        squares = self._squares[index]
        u = g * self._inverse_root(
            squares, ops.square(g) + own["epsilon"], own["beta_2"]
        )
        rms = ops.sqrt(ops.mean(ops.square(u)))
        u = u / ops.maximum(1.0, rms / own["clip_threshold"])
        m = self._momenta[index]
        step = own["beta_1"] * ops.cast(m, "float32") + (1 - own["beta_1"]) * u
        self.assign(m, step)
        if self._residuals[index]:
            residual = ops.square(u - step) + own["epsilon_residual"]
            step = step * self._inverse_root(
                self._residuals[index], residual, own["beta_3"]
            )
        self.assign_sub(variable, ops.cast(learning_rate * step, variable.dtype))

    def _inverse_root(self, averages, values, beta):
        """Updates averages by values, and returns 1 / sqrt of their estimate of v."""
        factored = len(averages) == 2
        means = [ops.mean(values, axis=a) for a in (-1, -2)] if factored else [values]
        for average, mean in zip(averages, means):
            self.assign(average, beta * average + (1 - beta) * mean)
        if not factored:
            return ops.rsqrt(averages[0].value)
        rows, columns = (average.value for average in averages)
        rows = rows / ops.mean(rows, axis=-1, keepdims=True)
        return ops.rsqrt(rows)[..., None] * ops.rsqrt(columns)[..., None, :]

    def get_config(self):
        return super().get_config() | self._own


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class SMMF(keras.optimizers.Optimizer):
    """Adam whose moments are rank-one factors of the variable as a square matrix.

    A variable of d entries is a matrix (n, d / n) as square as d's divisors allow.
    m = beta_m * old m + (1 - beta_m) * g,        beta_m = beta_1 * growth_rate**(t - 1)
    v = beta_v * old v + (1 - beta_v) * g**2,     beta_v = 1 - t**decay_rate
    x <- x - rate * m / (sqrt(v) + epsilon)

    where |m| and v are then kept as (row sums, column sums), one of them divided by
    the total, and the signs of m as one byte an entry. The old values are the products.

    Args:
        learning_rate: defaults to 0.001.
        beta_1: defaults to 0.9.
        growth_rate: defaults to 0.999.
        decay_rate: in [-1, 0]. Defaults to -0.8.
        epsilon: defaults to 1e-8.

    Source: Park, Lee, arXiv 2412.08894, Algorithms 1 to 4; as in the authors' code.
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        growth_rate=0.999,
        decay_rate=-0.8,
        epsilon=1e-8,
        name="smmf",
        **kwargs,
    ):
        super().__init__(learning_rate, name=name, **kwargs)
        self._own = {
            "beta_1": beta_1,
            "growth_rate": growth_rate,
            "decay_rate": decay_rate,
            "epsilon": epsilon,
        }

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        shapes = [_square(math.prod(v.shape)) for v in variables]
        self._factors = [
            [
                [self.add_variable((size,), name=moment) for size in shape]
                for moment in ("momentum", "square")
            ]
            for shape in shapes
        ]
        self._signs = [self.add_variable(s, dtype="bool", name="sign") for s in shapes]

    def update_step(self, gradient, variable, learning_rate):
        own = self._own
        index = self._get_variable_index(variable)
        first, second = self._factors[index]
        sign = self._signs[index]
        step = ops.cast(self.iterations + 1, "float32")
        beta_m = own["beta_1"] * ops.power(own["growth_rate"], step - 1)
        beta_v = 1 - ops.power(step, own["decay_rate"])
        g = dense(gradient, sign.shape)
        old_m, old_v = (
            ops.outer(rows.value, columns.value) for rows, columns in (first, second)
        )
        m = ops.where(sign.value, 1.0, -1.0) * old_m
        m = beta_m * m + (1 - beta_m) * g
        v = beta_v * old_v + (1 - beta_v) * ops.square(g)
        self.assign(sign, m > 0)
        self._factorize(ops.abs(m), first)
        self._factorize(v, second)
        update = ops.reshape(m / (ops.sqrt(v) + own["epsilon"]), variable.shape)
        self.assign_sub(variable, ops.cast(learning_rate * update, variable.dtype))

    def _factorize(self, matrix, factors):
        """Writes row and column sums to `factors`, the shorter divided by the total."""
        sums = [ops.sum(matrix, axis=1), ops.sum(matrix, axis=0)]
        shorter = 0 if matrix.shape[0] < matrix.shape[1] else 1
        total = ops.sum(sums[shorter])
        sums[shorter] = sums[shorter] / ops.where(total > 0, total, 1.0)
        for factor, value in zip(factors, sums):
            self.assign(factor, value)

    def get_config(self):
        return super().get_config() | self._own


def _square(size):
    """Returns (size / n, n) for the largest divisor n not above the root of size."""
    divisor = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return size // divisor, divisor
