"""Makes one update of an optimizer a function, in each library's own fast way.

Every entry takes (grads, values), NumPy arrays, and returns (step, state_bytes): a
function that takes one update and waits for it, and the bytes that the optimizer
keeps, without counters.
"""

import math


def keras_step(optimizer):
    """Compiles the whole update of a Keras optimizer where the backend compiles."""
    import keras

    def make(grads, values):
        grads = [keras.ops.convert_to_tensor(g) for g in grads]
        variables = [keras.Variable(v, name=_name(v.shape)) for v in values]
        optimizer.build(variables)
        step = _KERAS[keras.backend.backend()](optimizer, grads, variables)
        return step, sum(
            math.prod(v.shape) * int(v.dtype[-2:]) // 8
            for v in optimizer.variables
            if "float" in v.dtype and v.name != "learning_rate"
        )

    return make


def _name(shape):
    """Returns what Keras would call a variable: a table has far more rows than columns.

    Rules of optimizers tell matrices from embeddings by their names.
    """
    if len(shape) < 2:
        return "bias"
    return "embeddings" if len(shape) == 2 and shape[0] >= 8 * shape[1] else "kernel"


def _tensorflow(optimizer, grads, variables):
    import tensorflow as tf

    from extreme_tensoring_tf import ExtremeTensoring

    # Ours compiles itself, as it does inside `fit`. Keras' own get the same help.
    ours = isinstance(optimizer, ExtremeTensoring)

    @tf.function(jit_compile=not ours)
    def update():
        optimizer.apply(grads, variables)
        # To wait for. Not a model variable: while its array is held the next
        # update could not be in place.
        return optimizer.iterations + 0

    # One trace for each optimizer is meant: TensorFlow warns of many functions.
    update = update.get_concrete_function()
    return lambda: update().numpy()


def _jax(optimizer, grads, variables):
    import jax

    update = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    # The variables' own arrays are given away: what counts is in `state`.
    state = [[v.value for v in optimizer.variables], [v.value for v in variables]]

    def step():
        values, slots = update(state[0], grads, state[1])
        state[:] = slots, values
        jax.block_until_ready(state)

    return step


def _torch(optimizer, grads, variables):
    import torch

    def step():
        with torch.no_grad():
            optimizer.apply(grads, variables)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


_KERAS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}


def optax_step(transformation):
    """Compiles update and apply_updates of an Optax optimizer, arguments donated."""

    def make(grads, values):
        import jax
        import optax

        grads = [jax.numpy.asarray(g) for g in grads]
        values = [jax.numpy.array(v) for v in values]
        state = [values, transformation.init(values)]
        kept = sum(x.nbytes for x in jax.tree.leaves(state[1]) if x.ndim)

        def update(grads, slots, values):
            updates, slots = transformation.update(grads, slots, values)
            return optax.apply_updates(values, updates), slots

        update = jax.jit(update, donate_argnums=(1, 2))

        def step():
            state[:] = update(grads, state[1], state[0])
            jax.block_until_ready(state)

        return step, kept

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

        def step():
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        step()  # the state is made by the first step
        kept = sum(
            x.nbytes
            for slots in optimizer.state.values()
            for x in slots.values()
            if isinstance(x, torch.Tensor) and x.ndim
        )
        return step, kept

    return make
