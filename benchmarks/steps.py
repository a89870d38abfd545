"""Makes one update of an optimizer a function, in each library's own fast way.

Every entry takes (grads, values), NumPy arrays, and returns a `Step`.
"""

import dataclasses
import math
import typing


@dataclasses.dataclass(frozen=True)
class Step:
    """The update of an optimizer over given variables.

    Attributes:
        run: function of a count: takes so many updates, and waits for the last.
        state_bytes: what the optimizer keeps, without counters.
        temporary_bytes: what an update takes besides, as its compiler says; None
            where no compiler says it.
    """

    run: typing.Callable[[int], typing.Any]
    state_bytes: int
    temporary_bytes: int | None = None


def keras_step(optimizer, in_program=False):
    """Compiles the whole update of a Keras optimizer where the backend compiles.

    Ours compiles itself on TensorFlow, unless it is to be `in_program`.
    """
    import keras

    def make(grads, values):
        grads = [keras.ops.convert_to_tensor(g) for g in grads]
        variables = [keras.Variable(v, name=_name(v.shape)) for v in values]
        optimizer.build(variables)
        kept = sum(
            math.prod(v.shape) * int(v.dtype[-2:]) // 8
            for v in optimizer.variables
            if "float" in v.dtype and v.name != "learning_rate"
        )
        backend = keras.backend.backend()
        if backend == "tensorflow":
            return _tensorflow(optimizer, grads, variables, kept, in_program)
        return {"jax": _jax, "torch": _torch}[backend](
            optimizer, grads, variables, kept
        )

    return make


def _name(shape):
    """Returns what Keras would call a variable: a table has far more rows than columns.

    Rules of optimizers tell matrices from embeddings by their names.
    """
    if len(shape) < 2:
        return "bias"
    return "embeddings" if len(shape) == 2 and shape[0] >= 8 * shape[1] else "kernel"


def _tensorflow(optimizer, grads, variables, kept, in_program):
    import tensorflow as tf

    from extreme_tensoring_tf import ExtremeTensoring

    # Ours compiles itself, as it does inside `fit`. Keras' own get the same help.
    ours = isinstance(optimizer, ExtremeTensoring)

    @tf.function(jit_compile=in_program or not ours)
    def update():
        optimizer.apply(grads, variables)
        # To wait for. Not a model variable: while its array is held the next
        # update could not be in place.
        return optimizer.iterations + 0

    # One trace for each optimizer is meant: TensorFlow warns of many functions.
    update = update.get_concrete_function()

    def run(count):
        for _ in range(count):
            iterations = update()
        return iterations.numpy()

    return Step(run, kept)


def _jax(optimizer, grads, variables, kept):
    # The variables' own arrays are given away: what counts is in `state`.
    slots, values = ([v.value for v in vs] for vs in (optimizer.variables, variables))

    def update(slots, values, grads):
        values, slots = optimizer.stateless_apply(slots, grads, values)
        return slots, values

    return _jax_step(update, [slots, values], grads, kept)


def _jax_step(update, state, grads, kept):
    """Compiles (slots, values, grads) -> (slots, values); the first two are donated."""
    import jax

    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*state, grads).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes

    def run(count):
        for _ in range(count):
            state[:] = compiled(*state, grads)
        jax.block_until_ready(state)

    return Step(run, kept, temporary)


def _torch(optimizer, grads, variables, kept):
    import torch

    def run(count):
        with torch.no_grad():
            for _ in range(count):
                optimizer.apply(grads, variables)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return Step(run, kept)


def optax_step(transformation):
    """Compiles update and apply_updates of an Optax optimizer, arguments donated."""

    def make(grads, values):
        import jax
        import optax

        grads = [jax.numpy.asarray(g) for g in grads]
        values = [jax.numpy.array(v) for v in values]
        state = [transformation.init(values), values]
        kept = sum(x.nbytes for x in jax.tree.leaves(state[0]) if x.ndim)

        def update(slots, values, grads):
            updates, slots = transformation.update(grads, slots, values)
            return slots, optax.apply_updates(values, updates)

        return _jax_step(update, state, grads, kept)

    return make


def torch_step(make_optimizer):
    """Makes a torch optimizer over parameters that hold their gradients."""

    def make(grads, values):
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        parameters = []
        for g, v in zip(grads, values):
            parameter = torch.nn.Parameter(torch.tensor(v, device=device))
            parameter.grad = torch.tensor(g, device=device)
            parameters.append(parameter)
        optimizer = make_optimizer(parameters)

        def run(count):
            for _ in range(count):
                optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        run(1)  # the state is made by the first step
        kept = sum(
            x.nbytes
            for slots in optimizer.state.values()
            for x in slots.values()
            if isinstance(x, torch.Tensor) and x.ndim
        )
        return Step(run, kept)

    return make
