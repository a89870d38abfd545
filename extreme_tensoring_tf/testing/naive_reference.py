"""Algorithm 1 written naively, in float64 NumPy: the judge of the tests.

It shares no code with the package. Every entry of a variable gets its tuple of
coordinates, every statistic is summed entry by entry, every product is taken in
full.
"""

import math

import numpy as np


def split(n):
    """Returns the split of a factor, as the design states it."""
    a = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    r = math.isqrt(n)
    c = -(-n // r)
    return (r, c) if a + n // a > 2 * (r + c) else (a, n // a)


def axis_coordinates(indices, n, level):
    """Returns the coordinates of the indices of one axis: a list of (array, length)."""
    if level == 1:
        return [(indices, n)] if n > 1 else []
    a, b = split(n)
    return axis_coordinates(indices // b, a, level - 1) + axis_coordinates(
        indices % b, b, level - 1
    )


def coordinates(shape, level):
    """Returns, per dim of the index, the coordinate of every entry, and the length."""
    size = math.prod(shape)
    if level == "inf":
        return [(np.zeros(size, int), 1)]
    result = []
    grid = np.unravel_index(np.arange(size), shape) if shape else ()
    for indices, n in zip(grid, shape):
        result += axis_coordinates(indices, n, level)
    return result or [(np.zeros(size, int), 1)]


def damped_polar_factor(matrix, damping):
    """Returns U (S / sqrt(S**2 + damping * mean(S**2))) V of the matrix U S V."""
    u, s, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    damped = s / np.sqrt(s**2 + damping * np.mean(s**2))
    return (u * damped) @ v


class NaiveOrthogonal:
    """One matrix that moves along the polar factor of its gradient."""

    def __init__(self, value, view, learning_rate, damping, beta_1=0.0):
        self.x = np.array(value, np.float64)
        self.view = view
        self.lr = learning_rate
        self.damping = damping
        self.beta_1 = beta_1
        self.momentum = np.zeros(view)
        self.t = 0

    def step(self, gradient):
        g = np.array(gradient, np.float64).reshape(self.view)
        self.t += 1
        self.momentum = self.beta_1 * self.momentum + (1 - self.beta_1) * g
        factor = damped_polar_factor(self.momentum, self.damping)
        factor /= np.sqrt(np.mean(factor**2))
        self.x -= self.lr * factor.reshape(self.x.shape)


class NaiveExtremeTensoring:
    """One variable and its statistics. `step(g)` is one update."""

    def __init__(
        self,
        value,
        level=2,
        learning_rate=0.1,
        beta_1=0.0,
        beta_2=None,
        preconditioner="geometric_mean",
        clip_threshold=None,
        epsilon=1e-12,
        epsilon_placement="axis",
        statistic="sum",
        index=None,
    ):
        self.x = np.array(value, np.float64)
        self.index = index or coordinates(self.x.shape, level)
        self.sums = [np.zeros(length) for _, length in self.index]
        self.counts = [
            np.bincount(where, minlength=length).astype(float)
            for where, length in self.index
        ]
        self.momentum = np.zeros(self.x.size)
        self.t = 0
        self.lr = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.preconditioner = preconditioner
        self.clip_threshold = clip_threshold
        self.epsilon = epsilon
        self.epsilon_placement = epsilon_placement
        self.statistic = statistic

    def step(self, gradient):
        g = np.array(gradient, np.float64).reshape(-1)
        self.t += 1
        for s, (where, _) in zip(self.sums, self.index):
            squares = np.zeros_like(s)
            np.add.at(squares, where, g**2)
            if self.beta_2 is None:
                s += squares
            else:
                s *= self.beta_2
                s += (1 - self.beta_2) * squares
        update = self.delta() * self.first_moment(g)
        if self.clip_threshold is not None:
            rms = np.sqrt(np.mean(update**2))
            update = update / max(1.0, rms / self.clip_threshold)
        self.x -= (self.lr * update).reshape(self.x.shape)

    def first_moment(self, g):
        if not self.beta_1:
            return g
        self.momentum = self.beta_1 * self.momentum + (1 - self.beta_1) * g
        return self.momentum / (1 - self.beta_1**self.t)

    def delta(self):
        p = len(self.sums)
        correction = 1 - (self.beta_2 or 0.0) ** self.t
        sums = [s / correction for s in self.sums]
        means = [s / n for s, n in zip(sums, self.counts)]
        if self.preconditioner == "rank_one":
            total = sums[0].sum() / self.counts[0].sum()
            v = np.ones(self.x.size)
            for m, (where, _) in zip(means, self.index):
                v *= m[where] + self.epsilon
            return (v / (total + self.epsilon) ** (p - 1)) ** -0.5
        product = np.ones(self.x.size)
        outside = self.epsilon_placement == "product"
        for s, (where, _) in zip(
            sums if self.statistic == "sum" else means, self.index
        ):
            product *= s[where] + (0.0 if outside else self.epsilon)
        if outside:
            product += self.epsilon
        return product ** (-1 / (2 * p))
