"""`ExtremeTensoring`, a Keras optimizer: state, one step, configuration."""

import math

import keras

from extreme_tensoring_tf.planner import plan
from extreme_tensoring_tf.preconditioner import Preconditioner
from extreme_tensoring_tf.slots import Slots
from extreme_tensoring_tf.tensor_index import check_level
from extreme_tensoring_tf.tensor_index import resolve
from extreme_tensoring_tf.update import update_all

_TENSORFLOW = keras.backend.backend() == "tensorflow"
if _TENSORFLOW:  # the others do without it
    from extreme_tensoring_tf import sparse
    from extreme_tensoring_tf import xla


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
            `model.compile(jit_compile=...)` says. Costs some seconds at the first
            step and some MB of host memory for each shape. TensorFlow only: JAX
            compiles the whole step anyway. Defaults to True.
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
        self._slots = Slots(self, [_path(v) for v in variables], variables)
        self._forget_programs()

    def update_step(self, gradient, variable, learning_rate):
        """Takes one step of Algorithm 1 for one variable."""
        update_all(self, [gradient], [variable], learning_rate)

    # Keras clips, then decays, then updates: three passes. Where all gradients of
    # a step are at hand and dense, the update does all three in its own.

    def _clip_gradients(self, grads):
        self._fused = not _TENSORFLOW or not (
            xla.distributed() or any(sparse.is_sparse(g) for g in grads)
        )
        if self._fused and (self.clipnorm or self.global_clipnorm):
            return grads
        return super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables):
        if not self._fused:
            super()._apply_weight_decay(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        arguments = (grads, trainable_variables, learning_rate)
        if _TENSORFLOW and xla.distributed():  # a program cannot merge replicas
            super()._backend_update_step(*arguments)
        elif _TENSORFLOW and self.jit_compile:
            xla.compiled_update(self, *arguments, self._fused)
        else:
            update_all(self, *arguments, self._fused)

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
            shape = self._trainable_variables[position].shape
            self._slots.watch(position, path, shape)
        self._forget_programs()
        return watched

    def unwatch_diagonals(self):
        """Drops what `watch_diagonals` added."""
        for diagonal in self._slots.diagonals.values():
            self._untrack_variable(diagonal)
        self._slots.diagonals.clear()
        self._forget_programs()

    def _forget_programs(self):
        # Not a tracked attribute: a function is no part of a checkpoint.
        object.__setattr__(self, "_programs", {})

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
        skipped = keras.ops.convert_to_numpy(self._slots.counters.value)[:, 1]
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
