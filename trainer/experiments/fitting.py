"""Runs `model.fit` with evaluations: for experiments with models of their own."""

import contextlib


def fit(model, batches, train_steps, label, evaluate, on_evaluation):
    """Trains a compiled Keras model and evaluates it five times or so, evenly spaced.

    Args:
        model: compiled.
        batches: endless, shuffled.
        train_steps: how many.
        label: of the progress.
        evaluate: function without arguments, returns the loss to report.
        on_evaluation: called with step and loss; what it raises ends the run.

    Returns:
        A record: "loss" (the last), "curve", "parameters" and "state_scalars".
    """
    import keras

    from trainer import progress
    from trainer.optim import optimizer_state

    # As many epochs as divide the steps, of five at most.
    epochs = max(n for n in range(1, 6) if train_steps % n == 0)
    steps = train_steps // epochs
    curve = []
    shown = progress.Progress(train_steps, label=label)

    class Evaluation(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs):
            shown.update(lambda rate: {"loss": f"{logs['loss']:.3f}"})

        def on_epoch_end(self, epoch, logs=None):
            curve.append(((epoch + 1) * steps, evaluate()))
            on_evaluation(*curve[-1])

    with contextlib.closing(shown):
        model.fit(
            batches,
            shuffle=False,  # the batches are shuffled
            steps_per_epoch=steps,
            epochs=epochs,
            verbose=0,
            callbacks=[Evaluation()],
        )
    return {
        "loss": curve[-1][1],
        "curve": curve,
        "parameters": model.count_params(),
        "state_scalars": optimizer_state.state_scalars(model.optimizer),
    }
