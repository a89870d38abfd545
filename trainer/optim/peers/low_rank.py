"""Adam on a projection of the gradient to few rows or columns."""

import keras
from keras import ops

from trainer.optim.peers.gradients import dense


class _LowRankAdam(keras.optimizers.Optimizer):
    """Chooses the variables that are projected, and runs Adam on the projections.

    Kernels (matrices, not embeddings) are projected along their shorter side, by a
    projection that is renewed every `update_gap` steps. The rest is Adam's.

    Args:
        learning_rate: defaults to 0.001.
        rank: of the projection.
        scale: factor of the projected update.
        update_gap: steps. Defaults to 200.
        beta_1, beta_2, epsilon: Adam's. Default to 0.9, 0.999, 1e-6.
    """

    def __init__(
        self,
        learning_rate,
        rank,
        scale,
        update_gap=200,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        self._own = {
            "rank": rank,
            "scale": scale,
            "update_gap": update_gap,
            "beta_1": beta_1,
            "beta_2": beta_2,
            "epsilon": epsilon,
        }

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._projections, self._moments = [], []
        for variable in variables:
            shape, projection = tuple(variable.shape), None
            if len(shape) == 2 and "embedding" not in variable.path:
                rank = self._rank(min(shape))
                projection = self.add_variable((min(shape), rank), name="projection")
                # Rows of length `rank`, or the same across for a wide variable.
                tall = shape[0] >= shape[1]
                shape = (shape[0], rank) if tall else (rank, shape[1])
            self._projections.append(projection)
            self._moments.append(
                [self.add_variable(shape, name=n) for n in ("momentum", "square")]
            )

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        g = dense(gradient, variable.shape)
        projection = self._projections[index]
        if projection is None:
            update = self._adam(index, g)
        else:
            due = self.iterations % self._own["update_gap"] == 0
            self.assign(projection, self._renewed(due, projection.value, g))
            update = self._projected(index, g, projection.value)
        step = ops.cast(self.iterations + 1, "float32")
        squares = 1 - ops.power(self._own["beta_2"], step)
        rate = learning_rate * ops.sqrt(squares)
        rate = rate / (1 - ops.power(self._own["beta_1"], step))
        self.assign_sub(variable, ops.cast(rate * update, variable.dtype))

    def _rank(self, shorter):
        """Returns the rank of the projection of a matrix, by its shorter side."""
        return self._own["rank"]

    def _renewed(self, due, projection, g):
        """Returns the projection, (shorter side, rank), a new one if that is due."""
        raise NotImplementedError

    def _projected(self, index, g, projection):
        """Returns the update of a variable that is projected."""
        raise NotImplementedError

    def _project(self, g, projection):
        tall = g.shape[0] >= g.shape[1]
        return g @ projection if tall else ops.transpose(projection) @ g

    def _adam(self, index, g):
        """Returns m / (sqrt(v) + epsilon), not yet corrected for the bias of both."""
        own = self._own
        m, v = self._moments[index]
        self.assign(m, own["beta_1"] * m + (1 - own["beta_1"]) * g)
        self.assign(v, own["beta_2"] * v + (1 - own["beta_2"]) * ops.square(g))
        return m.value / (ops.sqrt(v.value) + own["epsilon"])

    def get_config(self):
        return super().get_config() | self._own


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class GaLore(_LowRankAdam):
    """Adam in the space of the gradient's first singular vectors.

    x <- x - rate * scale * P (m_hat / sqrt(v_hat)),     moments of P^T g

    where P are the first `rank` singular vectors of the gradient, of the shorter side,
    or all of them.

    Args:
        rank: defaults to 128.
        scale: defaults to 0.25.
        **kwargs: see `_LowRankAdam`.

    Source: Zhao et al., arXiv 2403.03507, Algorithm 2; as in galore-torch.
    """

    def __init__(
        self, learning_rate=0.001, rank=128, scale=0.25, name="galore", **kwargs
    ):
        super().__init__(learning_rate, rank, scale, name=name, **kwargs)

    def _rank(self, shorter):
        return min(shorter, self._own["rank"])

    def _renewed(self, due, projection, g):
        return ops.cond(due, lambda: self._singular_vectors(g), lambda: projection)

    def _singular_vectors(self, g):
        # Singular vectors of the shorter side are eigenvectors of its products, and
        # these are small.
        tall = g.shape[0] >= g.shape[1]
        products = ops.transpose(g) @ g if tall else g @ ops.transpose(g)
        _, vectors = ops.eigh(products / (ops.max(ops.abs(products)) + 1e-30))
        # The largest first: at a renewal the moments go on in this order.
        return ops.flip(vectors, axis=1)[:, : self._own["rank"]]

    def _projected(self, index, g, projection):
        update = self._adam(index, self._project(g, projection))
        tall = g.shape[0] >= g.shape[1]
        back = update @ ops.transpose(projection) if tall else projection @ update
        return self._own["scale"] * back


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class APOLLO(_LowRankAdam):
    """SGD whose rate for a matrix is Adam's on a random projection of its gradient.

    s = norm(m / sqrt(v)) / norm(P^T g),       moments of P^T g
    x <- x - rate * sqrt(scale) * limit(s * g)

    where P is normal with deviation rank**-0.5, and `limit` lets the norm of the step
    grow by 1 % a step at most. With rank 1 and scale 128 this is APOLLO-Mini.

    Args:
        rank: defaults to 1.
        scale: defaults to 128.
        seed: of the projections. Defaults to 0.
        **kwargs: see `_LowRankAdam`.

    Source: Zhu et al., arXiv 2412.05270, Algorithm 1 with tensor-wise scaling; as in
    apollo-torch.
    """

    def __init__(
        self, learning_rate=0.001, rank=1, scale=128, seed=0, name="apollo", **kwargs
    ):
        super().__init__(learning_rate, rank, scale, name=name, **kwargs)
        self._own["seed"] = seed

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._seeds = keras.random.SeedGenerator(self._own["seed"])
        self._track_variable(self._seeds.state)
        self._norms = [
            None if projection is None else self.add_variable((), name="step_norm")
            for projection in self._projections
        ]

    def _renewed(self, due, projection, g):
        drawn = keras.random.normal(projection.shape, seed=self._seeds)
        return ops.where(due, drawn / self._own["rank"] ** 0.5, projection)

    def _projected(self, index, g, projection):
        low = self._project(g, projection)
        adam = self._adam(index, low)
        scaled = g * (ops.norm(adam) / (ops.norm(low) + 1e-8))
        norm, last = ops.norm(scaled), self._norms[index]
        growth = ops.maximum(norm / (last + 1e-8), 1.01) / 1.01
        growth = ops.where(last > 0, growth, 1.0)  # what had no gradient has no limit
        self.assign(last, norm / growth)
        return self._own["scale"] ** 0.5 * scaled / growth
