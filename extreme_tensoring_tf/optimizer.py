"""`ExtremeTensoring`, the optimizer: its arguments, forms and configuration."""

from typing import Self

import keras

from extreme_tensoring_tf.gradients import dense_array
from extreme_tensoring_tf.grouped_optimizer import GroupedOptimizer
from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.matrix_view import check_orthogonalize
from extreme_tensoring_tf.newton_schulz import Orthogonalizer
from extreme_tensoring_tf.packing import PACKED
from extreme_tensoring_tf.planner import plan
from extreme_tensoring_tf.preconditioner import Preconditioner
from extreme_tensoring_tf.tensor_index import TensorIndex
from extreme_tensoring_tf.tensor_index import check_level
from extreme_tensoring_tf.tensor_rules import EMBEDDINGS
from extreme_tensoring_tf.tensor_rules import check_tensor_dims
from extreme_tensoring_tf.tensor_rules import resolve
from extreme_tensoring_tf.update import Settings
from extreme_tensoring_tf.variables import dtype_of
from extreme_tensoring_tf.variables import itemsize
from extreme_tensoring_tf.variables import path_of
from extreme_tensoring_tf.variables import statistics_dtype


@keras.saving.register_keras_serializable("extreme_tensoring_tf")
class ExtremeTensoring(GroupedOptimizer):
    """Adaptive preconditioning with almost no memory.

    Use it in place of Adam, at Adam's learning rates; `ExtremeTensoring.orthogonal` is
    the best of its forms for most models. It implements Chen, Agarwal,
    Hazan, Zhang, Zhang, "Extreme Tensoring for Low-Memory Preconditioning", ICLR
    2020, arXiv 1902.04620. A variable x of d entries is indexed as a tensor of
    dimensions d_1, ..., d_p, with product d. One short vector per dimension is kept:
    sum(d_i) scalars in place of d. The paper's Algorithm 1, a step with gradient g
    and rate eta, is

        S_i[j] <- S_i[j] + sum over I with I_i = j of g[I]**2
        delta[I] = prod_i (epsilon + S_i[I_i]) ** (-1 / (2 p))
        x[I]   <- x[I] - eta * delta[I] * g[I]

    The default keeps moving averages in place of sums, and takes

        v[I] = prod_i (M_i[I_i] + epsilon) / (M + epsilon) ** (p - 1)
        delta[I] = v[I] ** (-1/2) / max(1, RMS(v ** (-1/2) * g) / clip_threshold)

    where

        I: the tensor index of an entry, I_i its i-th coordinate,
        S_i: the statistics of dimension i, a float32 vector of length d_i
            (float64 for a float64 variable),
        M_i: S_i divided by the entries of a slice: means over slices,
        M: the mean over the whole variable,
        p: the number of dimensions; p = 1 with d_1 = d is diagonal AdaGrad.

    v is the product distribution closest to the second moment in KL divergence,
    Adafactor's estimate for any tensor index. `ExtremeTensoring.algorithm_1` gives
    the paper's form.

    A matrix G that is orthogonalized, with m rows and n columns, m <= n, takes

        U = (G G^T + damping * tr(G G^T) / m * I) ** (-1/2) G
        x <- x - eta * rms_rate * U / RMS(U)

    the direction of steepest descent in the spectral norm: full-matrix AdaGrad on one
    axis with the memory of one step. It is Muon (Jordan et al. 2024) without momentum,
    and "stochastic spectral descent" (Carlson et al. 2015).

    State of a (2000, 512) variable: level 1 keeps 2,512 scalars, level 2 keeps
    138, level 3 keeps 48, "inf" keeps 1. Adam keeps 2,048,000.

    Args:
        learning_rate: a float, a `LearningRateSchedule` or a callable. Defaults to
            0.001.
        level: 1, 2, 3, ... or "inf". How often each axis is split; see
            `tensor_index`. Defaults to 2.
        beta_1: float in [0, 1). Above 0, the step uses a bias-corrected moving
            average of the gradients as Adam does. That keeps one more array of
            the variable's size, or a scalar: see `momentum_dtype`. Defaults to 0.0.
        beta_2: None sums the squares for ever (AdaGrad). A float in (0, 1) makes
            S_i a moving average with bias correction S_i / (1 - beta_2**t), t
            the updates this variable took. Defaults to 0.9.
        preconditioner: "rank_one" or "geometric_mean" (Algorithm 1), as above.
            Defaults to "rank_one".
        clip_threshold: None, or the largest root mean square of delta * g for
            a variable: a larger one is scaled down to it. Defaults to 1.0.
        epsilon: float >= 0, in the units of g**2: a gradient whose root mean square is
            well below sqrt(epsilon) takes shorter steps. Defaults to 1e-12.
        epsilon_placement: "axis", as above, or "product", Algorithm 1 to the
            letter: delta = (epsilon + prod_i S_i)**(-1/(2p)). The latter is
            slower and, for large p, swamps the product. Defaults to "axis".
        statistic: of "geometric_mean": "sum" (the paper), or "mean": each S_i is
            divided by the entries of its slice, so that rates carry over between
            levels and from AdaGrad. "rank_one" always uses means. Defaults to
            "sum".
        tensor_dims: None; or a dict of regular expressions over variable paths
            to dims: a level, flat dims with the variable's size as product, or
            one entry per axis (1 drops an axis); or a list of such dims, one per
            variable, None for `level`. The pattern "(^|/)embeddings$" is for matrices
            alone, and may find none. Defaults to None.
        orthogonalize: None; True for every kernel, a variable of two or more axes
            whose own name contains "kernel" (an embedding's does not); or a list of
            regular expressions over the paths of matrices. Such a variable keeps no
            statistics. It moves by the polar factor of its gradient, of this step
            alone or, with `momentum`, of the average: see below. Defaults to None.
        ns_steps: Newton-Schulz steps to a polar factor, 1 or more. With the damping
            that is the default, 4 are within 3 % of that of a random matrix of 200
            rows, 14 % at 1,024, and 5 within 0.4 %. Defaults to 4.
        damping: float >= 0. How much of its mean square is added to the squares of
            the singular values before their root is taken, so that what is noise is
            not raised to one. 0 is the polar factor itself, and needs more steps; 0.1
            needs 3. Defaults to 0.01.
        rms_rate: root mean square of an orthogonal step, at a learning rate of 1. 1
            is that of the other variables. Defaults to 1.0.
        block_size: None; or the rows or columns of a block: a matrix is split along
            its longer side, a square one into columns, and each block, of which the
            last may be shorter, has a polar factor of its own. That costs less, with
            the width of an attention head about a fifth, and loses some of the gain.
            Defaults to None.
        ns_dtype: "float16": the products of the Newton-Schulz steps are of half
            precision, which adds less than 1 % to their error. That is faster on GPUs.
            None is float32, in the precision that the backend has for its products.
            Defaults to None.
        momentum: `beta_1` of the matrices that are orthogonalized; None is that of
            the others. 0.8, where these have 0.9, is better in short runs and as good
            in long ones. Defaults to None.
        momentum_dtype: "packed" keeps the first moment in the lowest byte of the
            variable itself, which must be float32: no memory beside it but one
            scalar. The variable keeps 16 of 24 bits, more than `mixed_bfloat16` and
            `mixed_float16` compute with, and is rounded at random; see `packing.py`.
            Whoever writes other values into it (`set_weights`, restored weights, a
            layer such as `SpectralNormalization`) starts the momentum at random bits:
            build a new optimizer then. Or a dtype, such as "bfloat16" for half the
            memory. None is the variable's own, float32 for one of float16. Defaults
            to None.
        skip_nonfinite: whether a gradient with inf or nan, or one whose squares, with
            those before it in sums, add up to more than float32 holds, leaves its
            variable and statistics as they are. Such skips are counted in
            `skipped_updates`. Defaults to True.
        jit_compile: whether to compile the update with XLA where
            `model.compile(jit_compile=...)` does not. Costs some seconds at the
            first step and some MB of host memory for each shape. TensorFlow only:
            JAX compiles the whole step anyway. Defaults to True.
        name, **kwargs: these, and weight_decay, clipnorm, clipvalue, global_clipnorm,
            use_ema, ema_momentum, ema_overwrite_frequency, loss_scale_factor and
            gradient_accumulation_steps, are as in `keras.optimizers.Optimizer`.

    Raises:
        ValueError: an argument is outside the range given here; a variable is not
            of floating-point numbers; a gradient has another shape than its
            variable.
    """

    def __init__(
        self,
        learning_rate=0.001,
        level: int | str = 2,
        beta_1=0.0,
        beta_2=0.9,
        preconditioner="rank_one",
        clip_threshold=1.0,
        epsilon=1e-12,
        epsilon_placement="axis",
        statistic="sum",
        tensor_dims=None,
        orthogonalize=None,
        ns_steps=4,
        damping=0.01,
        rms_rate=1.0,
        block_size=None,
        ns_dtype=None,
        momentum=None,
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
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(
                f"`momentum` must be None or in [0, 1). Received: momentum={momentum!r}"
            )
        if momentum and not orthogonalize:
            raise ValueError(
                f"`momentum` is that of matrices that `orthogonalize` names, and none "
                f"is named. Received: momentum={momentum!r}: give it as `beta_1`"
            )
        if momentum_dtype not in (None, PACKED, "bfloat16", "float32", "float64"):
            raise ValueError(
                '`momentum_dtype` must be None, "packed", "bfloat16", "float32" or '
                '"float64": the range of float16 ends at 65,504. '
                f"Received: momentum_dtype={momentum_dtype!r}"
            )
        if beta_2 is not None and not 0 < beta_2 < 1:
            raise ValueError(
                f"`beta_2` must be None or in (0, 1). Received: beta_2={beta_2!r}"
            )
        self.level = check_level(level)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.preconditioner = preconditioner
        self.clip_threshold = clip_threshold
        self.epsilon = epsilon
        self.epsilon_placement = epsilon_placement
        self.statistic = statistic
        self.tensor_dims = check_tensor_dims(tensor_dims)
        self.orthogonalize = check_orthogonalize(orthogonalize)
        self.ns_steps = ns_steps
        self.damping = damping
        self.rms_rate = rms_rate
        self.block_size = block_size
        self.ns_dtype = ns_dtype
        self.momentum = momentum
        self.momentum_dtype = momentum_dtype
        self.skip_nonfinite = skip_nonfinite
        self.jit_compile = jit_compile
        self.settings()  # refuses numbers that are out of their range

    @classmethod
    def algorithm_1(cls, learning_rate, level=2, **kwargs) -> Self:
        """Returns the paper's form: a geometric mean of sums that never decay.

        Source: arXiv 1902.04620, Algorithm 1. The best rate depends on the level:
        tune it.

        Args:
            learning_rate, level: as of the constructor.
            **kwargs: more arguments of the constructor. `statistic="mean"` makes
                rates carry over between levels; `epsilon_placement="product"` adds
                epsilon where the paper adds it.
        """
        form = {
            "beta_2": None,
            "preconditioner": "geometric_mean",
            "clip_threshold": None,
        }
        return cls(learning_rate, level, **form | kwargs)

    @classmethod
    def orthogonal(cls, learning_rate=0.001, **kwargs) -> Self:
        """Returns the form that was best: orthogonal steps along packed averages.

        Every kernel moves by the polar factor of an average over five steps, what is
        no kernel by an average over ten, scaled: by one scalar a vector, and for an
        embedding by rank-one tensoring of its rows. The averages are in the
        variables, which must be float32: see `packing.py`.

        Args:
            learning_rate: as of the constructor.
            **kwargs: more arguments of the constructor, or others for those of the
                form. `ns_dtype="float16"` is faster on a GPU; `momentum_dtype=None`
                keeps the averages in arrays of their own, for variables of any dtype;
                `beta_1=0.0, momentum=0.0, rms_rate=1.0` has none.
        """
        form = {
            "level": "inf",
            "tensor_dims": {EMBEDDINGS: ["et2", 1]},
            "orthogonalize": True,
            "beta_1": 0.9,
            "momentum": 0.8,
            "momentum_dtype": PACKED,
            "rms_rate": 0.35,
        }
        return cls(learning_rate, **form | kwargs)

    @classmethod
    def for_budget(cls, variables, budget_bytes, gradients=None, **kwargs) -> Self:
        """Returns an optimizer whose state fits a number of bytes.

        Dims are chosen per variable and axis; an axis may also be dropped: one
        scalar for all of it. See `planner.py` for the rule.

        Args:
            variables: the model's trainable variables.
            budget_bytes: bytes of statistics and of the scales of packed momentum,
                at most. Momentum in arrays of its own is not counted.
            gradients: None, or one sample gradient (or a list of them) per
                variable, sparse or not: then the budget goes where it fits the second
                moment best.
            **kwargs: of the constructor, but for `level` and `tensor_dims`.

        Raises:
            ValueError: the budget is less than one scalar for each variable with
                statistics, and one for each with packed momentum; there is no variable;
                or `level` or `tensor_dims` is given.
        """
        for name in ("level", "tensor_dims"):
            if name in kwargs:
                raise ValueError(f"`{name}` is what `for_budget` plans: do not give it")
        variables = list(variables)
        if not variables:
            raise ValueError(
                "`for_budget` was given no variable. Build the model first: call it on "
                "a batch, or begin it with an `Input`"
            )
        named = [(path_of(v), tuple(v.shape)) for v in variables]
        unplanned = cls(**kwargs)
        if gradients is not None:
            gradients = [
                [dense_array(g) for g in (gs if isinstance(gs, list | tuple) else [gs])]
                for gs in gradients
            ]
        rules = plan(
            named,
            budget_bytes,
            gradients,
            unplanned.orthogonalize,
            unplanned.settings().momentum_scales(unplanned.tensor_indices(named)),
            max(itemsize(statistics_dtype(dtype_of(v))) for v in variables),
        )
        # One scalar for each variable that the rules do not know, as when a model is
        # made anew under other names: then a plan does not take more than it may.
        return cls(level="inf", tensor_dims=rules, **kwargs)

    def tensor_indices(self, variables) -> list[TensorIndex | MatrixView]:
        """Returns tensor indices for a list of (path, shape): see `tensor_rules.py`."""
        return resolve(variables, self.level, self.tensor_dims, self.orthogonalize)

    def settings(self) -> Settings:
        """Returns the numbers of a step as they are now."""
        return Settings(
            Preconditioner(
                self.preconditioner,
                self.epsilon,
                self.epsilon_placement,
                self.statistic,
                self.clip_threshold,
            ),
            Orthogonalizer(
                self.ns_steps,
                self.damping,
                self.rms_rate,
                self.block_size,
                self.ns_dtype,
            ),
            self.beta_1,
            self.beta_1 if self.momentum is None else self.momentum,
            self.momentum_dtype == PACKED,
            self.beta_2,
            self.skip_nonfinite,
            max(self.clipnorm or 0.0, 0.0),
            max(self.global_clipnorm or 0.0, 0.0),
            self.weight_decay or 0.0,
        )

    def get_config(self) -> dict:
        """Returns the arguments of the constructor, for `from_config`."""
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
                "orthogonalize": self.orthogonalize,
                "ns_steps": self.ns_steps,
                "damping": self.damping,
                "rms_rate": self.rms_rate,
                "block_size": self.block_size,
                "ns_dtype": self.ns_dtype,
                "momentum": self.momentum,
                "momentum_dtype": self.momentum_dtype,
                "skip_nonfinite": self.skip_nonfinite,
                "jit_compile": self.jit_compile,
            }
        )
        return config
