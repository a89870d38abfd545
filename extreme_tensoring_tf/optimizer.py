"""`ExtremeTensoring`, a Keras optimizer: state, one step, configuration."""

import dataclasses
import math

import keras
from keras import ops

from extreme_tensoring_tf.planner import plan
from extreme_tensoring_tf.preconditioner import Preconditioner
from extreme_tensoring_tf.preconditioner import squared_sums
from extreme_tensoring_tf.tensor_index import check_level
from extreme_tensoring_tf.tensor_index import resolve

if keras.backend.backend() == "tensorflow":  # the others do without it
    from extreme_tensoring_tf import sparse
    from extreme_tensoring_tf import xla


@dataclasses.dataclass
class _Slots:
    """State of the optimizer, one entry per model variable, in build order."""

    indices: list  # tensor_index.TensorIndex
    statistics: list  # lists of vectors, of lengths index.dims
    momentums: list  # arrays like the variable; empty without beta_1
    counters: object  # int32 (variables, 2): updates taken, skipped; may be None
    diagonals: dict  # position -> sums of squares, full size: see trace_ratio.py


@keras.saving.register_keras_serializable("extreme_tensoring_tf")
class ExtremeTensoring(keras.optimizers.Optimizer):
    """AdaGrad (or RMSprop, or Adam) with a preconditioner of almost no memory.

    A variable of d entries is indexed as a tensor of dimensions d_1, ..., d_p,
    with product d. One short vector per dimension is kept: sum(d_i) scalars in
    place of d. A step with gradient g and rate eta is

        S_i[j] <- S_i[j] + sum over I with I_i = j of g[I]**2
        delta[I] = prod_i (epsilon + S_i[I_i]) ** (-1 / (2 p))
        x[I]   <- x[I] - eta * delta[I] * g[I]

    where
        I: the tensor index of an entry, I_i its i-th coordinate,
        S_i: the statistics of dimension i, a float32 vector of length d_i
            (float64 for a float64 variable),
        p: the number of dimensions; p = 1 with d_1 = d is diagonal AdaGrad.

    State of a (2000, 512) variable: level 1 keeps 2,512 scalars, level 2 keeps
    138, level 3 keeps 48, "inf" keeps 1. Adam keeps 2,048,000.

    Args:
        learning_rate: a float, a `LearningRateSchedule` or a callable. With
            sums, as in the paper, the best rate depends on the level: tune it.
            Defaults to 0.001.
        level: 1, 2, 3, ... or "inf". How often each axis is split; see
            `tensor_index`. Defaults to 2.
        beta_1: float in [0, 1). Above 0, the step uses a bias-corrected moving
            average of the gradients as Adam does. That keeps one more array of
            the variable's size. Defaults to 0.0.
        beta_2: None sums the squares for ever (AdaGrad). A float in (0, 1) makes
            S_i a moving average with bias correction S_i / (1 - beta_2**t), t
            the updates this variable took. Defaults to None.
        preconditioner: "geometric_mean", Algorithm 1 as above, or "rank_one",
            delta = v**(-1/2) with v[I] = prod_i (M_i[I_i] + epsilon) /
            (M + epsilon)**(p-1), where M_i are the means over slices and M is
            the mean over the variable: Adafactor's estimate for any tensor
            index. Defaults to "geometric_mean".
        clip_threshold: None, or the largest root mean square of delta * g for
            a variable: a larger one is scaled down to it. Defaults to None.
        epsilon: float >= 0, in the units of g**2. Defaults to 1e-8.
        epsilon_placement: "axis", as above, or "product", Algorithm 1 to the
            letter: delta = (epsilon + prod_i S_i)**(-1/(2p)). The latter is
            slower and, for large p, swamps the product. Defaults to "axis".
        statistic: "sum" (the paper), or "mean": each S_i is divided by the
            entries of its slice, so that rates carry over between levels and
            from AdaGrad and Adam. "rank_one" always uses means. Defaults to
            "sum".
        tensor_dims: None, or a dict of regular expressions over variable paths
            to dims: a level, flat dims with the variable's size as product, or
            one entry per axis (1 drops an axis). Defaults to None.
        momentum_dtype: dtype of the first moment, such as "bfloat16" for half the
            memory. None is the variable's own. Defaults to None.
        skip_nonfinite: whether a gradient with inf or nan (or squares beyond
            float32) leaves its variable and statistics as they are. Such skips
            are counted in `skipped_updates`. Defaults to True.
        jit_compile: whether to compile the update with XLA, whatever
            `model.compile(jit_compile=...)` says. TensorFlow only: JAX compiles
            the whole step anyway. Defaults to True.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema,
        ema_momentum, ema_overwrite_frequency, loss_scale_factor,
        gradient_accumulation_steps, name: as in `keras.optimizers.Optimizer`.

    Raises:
        ValueError: an argument is outside the range given here.

    Source: Chen, Agarwal, Hazan, Zhang, Zhang, "Extreme Tensoring for Low-Memory
    Preconditioning", ICLR 2020, arXiv 1902.04620, Algorithm 1.
    """

    def __init__(
        self,
        learning_rate=0.001,
        level=2,
        beta_1=0.0,
        beta_2=None,
        preconditioner="geometric_mean",
        clip_threshold=None,
        epsilon=1e-8,
        epsilon_placement="axis",
        statistic="sum",
        tensor_dims=None,
        momentum_dtype=None,
        skip_nonfinite=True,
        jit_compile=True,
        weight_decay=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        name="extreme_tensoring",
        **kwargs,
    ):
        super().__init__(
            learning_rate=learning_rate,
            name=name,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            **kwargs,
        )
        if not 0 <= beta_1 < 1:
            raise ValueError(f"`beta_1` must be in [0, 1). Received: beta_1={beta_1!r}")
        if beta_2 is not None and not 0 < beta_2 < 1:
            raise ValueError(
                f"`beta_2` must be None or in (0, 1). Received: beta_2={beta_2!r}"
            )
        self._preconditioner = Preconditioner(
            preconditioner, epsilon, epsilon_placement, statistic, clip_threshold
        )
        self.level = check_level(level)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.preconditioner = preconditioner
        self.clip_threshold = clip_threshold
        self.epsilon = epsilon
        self.epsilon_placement = epsilon_placement
        self.statistic = statistic
        self.tensor_dims = dict(tensor_dims) if tensor_dims else None
        self.momentum_dtype = momentum_dtype
        self.skip_nonfinite = skip_nonfinite
        self.jit_compile = jit_compile

    @classmethod
    def for_budget(cls, variables, budget_bytes, gradients=None, **kwargs):
        """An optimizer whose statistics fit a number of bytes.

        Chooses dims per variable and axis; an axis may also be dropped: one
        scalar for all of it. See `planner.py` for the rule.

        Args:
            variables: the model's trainable variables.
            budget_bytes: bytes of statistics, at most.
            gradients: None, or one sample gradient (or a list of them) per
                variable: then the budget goes where it fits the second moment
                best.
            **kwargs: of the constructor, but for `level` and `tensor_dims`.

        Raises:
            ValueError: the budget is less than one scalar per variable.
        """
        named = [(_path(v), tuple(v.shape)) for v in variables]
        return cls(tensor_dims=plan(named, budget_bytes, gradients), **kwargs)

    def tensor_indices(self, variables):
        """Tensor indices for a list of (path, shape): see `tensor_index.py`."""
        return resolve(variables, self.level, self.tensor_dims)

    def build(self, variables):
        """Creates one vector per dim of each variable's tensor index."""
        if self.built:
            return
        super().build(variables)
        paths = [_path(v) for v in variables]
        indices = self.tensor_indices(
            [(path, tuple(v.shape)) for path, v in zip(paths, variables)]
        )
        # `iterations` counts steps. A variable whose gradient was skipped or
        # absent took fewer, so bias correction needs a counter of its own.
        counted = self.skip_nonfinite or self.beta_1 or self.beta_2
        # One plain object, not attributes: a list here would be tracked twice.
        self._slots = _Slots(indices, [], [], None, {})
        for path, variable, index in zip(paths, variables, indices):
            prefix = path.replace("/", "_")
            self._slots.statistics.append(
                [
                    self.add_variable(
                        shape=(dim,),
                        dtype=_statistics_dtype(variable),
                        name=f"{prefix}_statistic_{label}",
                    )
                    for dim, label in zip(index.dims, index.labels)
                ]
            )
            if self.beta_1:
                self._slots.momentums.append(
                    self.add_variable(
                        shape=variable.shape,
                        dtype=self.momentum_dtype or variable.dtype,
                        layout=getattr(variable, "_layout", None),
                        name=f"{prefix}_momentum",
                    )
                )
        if counted:
            self._slots.counters = self.add_variable(
                shape=(len(variables), 2), dtype="int32", name="counters"
            )

    def update_step(self, gradient, variable, learning_rate):
        """Takes one step of Algorithm 1 for one variable."""
        self._update_alike([gradient], [variable], learning_rate)

    def _update_alike(self, gradients, variables, learning_rate):
        """One step for k variables of one tensor index and dtype."""
        positions = [self._get_variable_index(v) for v in variables]
        index = self._slots.indices[positions[0]]
        dtype = self._slots.statistics[positions[0]][0].dtype
        shape = variables[0].shape
        slice_ids = row_ids = None
        if self._stays_sparse(gradients[0], positions[0], shape):
            slice_ids, row_ids, matrix = sparse.touched_rows(
                gradients[0], index, shape, dtype
            )
            matrices = [matrix]
        else:
            matrices = [
                ops.reshape(ops.convert_to_tensor(g), index.view) for g in gradients
            ]

        # A cast is repeated where it is needed, so as not to keep k copies.
        casts = (ops.cast(matrix, dtype) for matrix in matrices)
        sums = squared_sums(casts, index, row_ids)
        finite = None
        if self.skip_nonfinite:
            finite = ops.isfinite(ops.sum(sums[0], axis=1))
        t = self._count_updates(positions, finite, dtype)
        sums = self._accumulate(positions, sums, finite, t)
        factors = self._preconditioner.factors(sums, index, row_ids)
        rate = ops.cast(learning_rate, dtype)
        for i, (position, variable) in enumerate(zip(positions, variables)):
            ok = None if finite is None else finite[i]
            direction = ops.cast(matrices[i], dtype)
            if position in self._slots.diagonals:
                diagonal = self._slots.diagonals[position]
                squares = ops.reshape(ops.square(direction), diagonal.shape)
                self.assign_add(diagonal, _where(ok, squares, 0.0))
            if self.beta_1:
                direction = self._average_gradients(position, direction, ok, t[i])
            step = _where(ok, factors[i].scale(direction, rate), 0.0)
            if slice_ids is not None:
                self.assign_sub(variable, sparse.slices(step, slice_ids, shape))
            else:
                self._subtract(variable, ops.reshape(step, shape))

    def _subtract(self, variable, step):
        if keras.backend.standardize_dtype(variable.dtype) == step.dtype:
            self.assign_sub(variable, step)
        else:  # subtract before rounding to the variable's shorter dtype
            value = ops.cast(ops.convert_to_tensor(variable), step.dtype) - step
            self.assign(variable, ops.cast(value, variable.dtype))

    def _stays_sparse(self, gradient, position, shape):
        """Whether only the gathered rows are touched. Momentum moves every row."""
        return (
            keras.backend.backend() == "tensorflow"
            and position not in self._slots.diagonals
            and sparse.is_sparse(gradient)
            and not self.beta_1
            and sparse.fits(self._slots.indices[position], shape)
        )

    def _count_updates(self, positions, finite, dtype):
        """Counts updates and skips. Returns t (k,), the updates' numbers from 1."""
        counters = self._slots.counters
        if counters is None:
            return None
        places = ops.convert_to_tensor(positions, "int32")
        if finite is None:
            taken = ops.ones((len(positions),), "int32")
        else:
            taken = ops.cast(finite, "int32")
        t = ops.take(counters.value[:, 0], places) + 1
        new = ops.stack([taken, 1 - taken], axis=1)
        new = ops.scatter(ops.expand_dims(places, 1), new, counters.shape)
        self.assign_add(counters, new)
        return ops.cast(t, dtype)

    def _accumulate(self, positions, sums, finite, t):
        """Adds this step's sums to the statistics; returns them bias-corrected."""
        keep = 1.0 if self.beta_2 is None else self.beta_2
        add = 1.0 if self.beta_2 is None else 1.0 - self.beta_2
        finite = None if finite is None else ops.expand_dims(finite, 1)
        accumulated = []
        for dim, new in enumerate(sums):
            slots = [self._slots.statistics[p][dim] for p in positions]
            old = ops.stack([s.value for s in slots])
            values = _where(finite, keep * old + add * new, old)
            for i, slot in enumerate(slots):
                self.assign(slot, values[i])
            accumulated.append(values)
        if self.beta_2 is None:
            return accumulated
        correction = ops.expand_dims(_bias_correction(self.beta_2, t), 1)
        return [s / correction for s in accumulated]

    def _average_gradients(self, position, matrix, finite, t):
        """First moment with bias correction, as in Adam."""
        slot = self._slots.momentums[position]
        old = ops.reshape(ops.cast(slot, matrix.dtype), matrix.shape)
        new = self.beta_1 * old + (1 - self.beta_1) * matrix
        new = _where(finite, new, old)
        self.assign(slot, ops.reshape(ops.cast(new, slot.dtype), slot.shape))
        return new / _bias_correction(self.beta_1, t)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if keras.backend.backend() != "tensorflow":
            self._update_all(grads, trainable_variables, learning_rate)
        elif xla.distributed():  # a program cannot merge replicas
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        elif self.jit_compile:
            xla.compiled_update(self, grads, trainable_variables, learning_rate)
        else:
            self._update_all(grads, trainable_variables, learning_rate)

    def _update_all(self, grads, variables, learning_rate):
        """Steps variables in groups of one tensor index, shape and dtype."""
        groups = {}
        for gradient, variable in zip(grads, variables):
            position = self._get_variable_index(variable)
            key = (
                self._slots.indices[position],
                tuple(variable.shape),
                keras.backend.standardize_dtype(variable.dtype),
                # Sparse gradients differ in their number of rows.
                position
                if self._stays_sparse(gradient, position, variable.shape)
                else None,
            )
            groups.setdefault(key, []).append((gradient, variable))
        for group in groups.values():
            self._update_alike(*zip(*group), learning_rate)

    def watch_diagonals(self, matches):
        """Keeps AdaGrad's full-size sums beside the statistics (`TraceRatio`).

        Args:
            matches: function of a variable's path: whether to watch it.

        Returns:
            A dict of position to path of the variables watched.
        """
        watched = {
            position: _path(v)
            for position, v in enumerate(self._trainable_variables)
            if matches(_path(v))
        }
        for position, path in watched.items():
            self._slots.diagonals[position] = self.add_variable(
                shape=self._trainable_variables[position].shape,
                dtype=self._slots.statistics[position][0].dtype,
                name=f"{path.replace('/', '_')}_diagonal",
            )
        self._forget_program()
        return watched

    def unwatch_diagonals(self):
        """Drops what `watch_diagonals` added."""
        for diagonal in self._slots.diagonals.values():
            self._untrack_variable(diagonal)
        self._slots.diagonals.clear()
        self._forget_program()

    def _forget_program(self):
        object.__setattr__(self, "_update_program", None)

    @property
    def state_size(self):
        """Number of state scalars: statistics, and momentum if there is any.

        Counters (`iterations`, updates taken and skipped) and the learning rate
        are not state in this sense.
        """
        if not self.built:
            raise ValueError(
                "`state_size` is known once the optimizer is built. Call "
                "`optimizer.build(model.trainable_variables)` first."
            )
        statistics = sum(index.state_size for index in self._slots.indices)
        return statistics + sum(math.prod(m.shape) for m in self._slots.momentums)

    @property
    def skipped_updates(self):
        """Updates left out for a non-finite gradient: {variable path: count}."""
        skipped = ops.convert_to_numpy(self._slots.counters.value)[:, 1]
        return {_path(v): int(n) for v, n in zip(self._trainable_variables, skipped)}

    def get_config(self):
        """Arguments of the constructor, for `from_config`."""
        config = super().get_config()
        config.update(
            {
                "level": self.level,
                "beta_1": self.beta_1,
                "beta_2": self.beta_2,
                "preconditioner": self.preconditioner,
                "clip_threshold": self.clip_threshold,
                "epsilon": self.epsilon,
                "epsilon_placement": self.epsilon_placement,
                "statistic": self.statistic,
                "tensor_dims": self.tensor_dims,
                "momentum_dtype": self.momentum_dtype,
                "skip_nonfinite": self.skip_nonfinite,
                "jit_compile": self.jit_compile,
            }
        )
        return config


def _path(variable):
    return getattr(variable, "path", variable.name)


def _statistics_dtype(variable):
    """float32, for bfloat16 sums lose small increments; float64 for float64."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return dtype if dtype == "float64" else "float32"


def _bias_correction(beta, t):
    """1 - beta**t, without the cancellation that a beta near 1 would bring."""
    return -ops.expm1(t * math.log(beta))


def _where(condition, new, old):
    return new if condition is None else ops.where(condition, new, old)
