"""What a run leaves in its folder: TensorBoard's events, traces, checkpoints."""

import dataclasses

from trainer.optim import optimizer_state
from trainer.training import loop
from trainer.training import monitoring
from trainer.training import run_state
from trainer.training.loop_test import run


def summaries(output_dir):
    """TensorBoard's own reading of a run's folder: all its starts together."""
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(
        str(output_dir), size_guidance={"tensors": 0}
    )
    events.Reload()
    return {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}


def steps_of(events):
    return [event.step for event in events]


def test_summaries_are_written(trained):
    found = summaries(trained.path.parent.parent)
    assert {
        "train/loss",
        "train/perplexity_per_token",
        "train/learning_rate",
        "train/gradient_norm",
        "train/tokens_per_second",
        "train/model_flops_per_second",
        "optimizer/state_bytes",
        "dev/perplexity_per_word",
    } <= set(found)
    scalars = optimizer_state.state_scalars(trained.model.optimizer)
    (state,) = found["optimizer/state_bytes"]
    assert state.tensor_proto.float_val[0] == 4 * scalars
    norms = [event.tensor_proto.float_val[0] for event in found["train/gradient_norm"]]
    assert all(norm > 0 for norm in norms)
    assert steps_of(found["train/loss"]) == [20, 40, 60]


def test_the_files_of_a_run(data_dir, tmp_path, capfd):
    """The newest checkpoints stay, the profiler's trace is there.

    Where the newest checkpoint is damaged, the run goes on from the one before, and
    TensorBoard shows no step twice.
    """
    first = dataclasses.replace(
        run(data_dir, tmp_path, 45),
        save_checkpoints_steps=15,
        keep_checkpoint_max=2,
        profile=(3, 4),
    )
    assert loop.train(first).steps == 45
    folder = tmp_path / "checkpoints"
    names = {"model-30.keras", "model-45.keras", "best.keras", "best.json"}
    assert {p.name for p in folder.iterdir()} == names
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    assert steps_of(summaries(tmp_path)["train/loss"]) == [20, 40]
    content = bytearray((folder / "model-45.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model-45.keras").write_bytes(content)
    assert loop.train(first).steps == 45
    said = capfd.readouterr().err
    assert "model-45.keras is damaged: the one before is used" in said
    assert "--profile=3,4 has no effect: the run goes on from step 30" in said
    found = summaries(tmp_path)
    assert steps_of(found["train/loss"]) == [20, 40]
    assert steps_of(found["dev/nats_per_token"]) == [45]


def test_a_start_from_step_0_has_the_summaries_to_itself(tmp_path):
    """Nothing was saved of the start before; its optimizer may have been another.

    Files of other programs stay.
    """
    other = tmp_path / "events.out.tfevents.1.host.2.0"
    other.touch()
    for state_bytes in (4.0, 8.0):
        state = run_state.RunState(0, 60, 96, 5)
        monitoring.Summaries(state, tmp_path, 1.0, state_bytes, 1).close()
    (event,) = summaries(tmp_path)["optimizer/state_bytes"]
    assert (event.step, event.tensor_proto.float_val[0]) == (0, 8.0)
    assert other.exists()
