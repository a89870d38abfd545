r"""Measures on a GPU: updates up to 1e9 parameters, training speed and memory, quality.

    python -m benchmarks.gpu --data_dir=DATA --problem=PROBLEM --output=gpu

Needs packed rows from et-datagen, and Keras with JAX (KERAS_BACKEND=jax, no
TensorFlow) or TensorFlow. Every part is a process of its own, so that memory is
measured alone; all of them end within 9 minutes. Writes OUTPUT.json and OUTPUT.md.
--smoke runs the same on small shapes, on a CPU too.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

from absl import flags

from trainer.bin import cli
from trainer.errors import UsageError

_DATA_DIR = cli.DEFINE_path("data_dir", None, "Folder that et-datagen wrote.")
_PROBLEM = flags.DEFINE_string("problem", None, "Name of the problem.")
_OUTPUT = cli.DEFINE_path("output", "gpu", "Results: OUTPUT.json, OUTPUT.md.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Small shapes and few steps.")
_SECONDS = cli.DEFINE_count("seconds", 540, "All parts together, at most.")
_PART = flags.DEFINE_string("part", None, "One training part as JSON: internal.")


@dataclasses.dataclass(frozen=True)
class Training:
    """Says what one training run is made of."""

    what: str
    optimizer: str
    hparams_set: str
    hparams: str
    dtype: str
    steps: int


def trainings(smoke):
    size = "transformer_tiny" if smoke else "transformer_base"
    batch = 1024 if smoke else 16384
    for name in ("et2_orthogonal", "et2", "sgd", "adam", "muon"):
        yield Training(
            "speed",
            name,
            size,
            f"batch_size={batch}",
            "mixed_bfloat16",
            4 if smoke else 60,
        )
    size = "transformer_tiny" if smoke else "transformer_small"
    plain = (
        "layer_prepostprocess_dropout=0,attention_dropout=0,relu_dropout=0,"
        "label_smoothing=0,learning_rate_warmup_steps=200,batch_size=1024"
    )
    for name in ("et2_orthogonal", "et2", "et2_rank1", "adam", "muon", "sgd"):
        yield Training("quality", name, size, plain, "float32", 4 if smoke else 600)


def main(argv):
    cli.no_arguments(argv)
    cli.require(_DATA_DIR, _PROBLEM)
    if _PART.value:
        cli.print_json(train(Training(**json.loads(_PART.value))))
        return
    from trainer.data import dataset

    dataset.load_description(_DATA_DIR.value, _PROBLEM.value)
    output = pathlib.Path(_OUTPUT.value)
    if not output.parent.is_dir():
        raise UsageError(f"--output={output}: its folder does not exist")
    end = time.monotonic() + _SECONDS.value
    # The allocator takes memory as it is needed, so that its peak says something.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    results, sections = {}, []
    presets = ("1e6",) if _SMOKE.value else ("transformer_23m", "1e9")
    for preset in presets:
        figures = output.with_name(f"{output.name}-{preset}.json")
        command = ["-m", "benchmarks.optimizer_step", f"--preset={preset}"]
        command += [
            f"--json={figures}",
            "--optimizers=sgd,adam,adafactor,et1,et2,et3,et2_orthogonal",
        ]
        if preset == "1e9":
            command[-1] = "--optimizers=sgd,adam,et2"
        text = _call(command, environment, end)
        if figures.is_file():
            results[preset] = json.loads(figures.read_text())
            figures.unlink()
        sections.append(f"## {preset}\n\n{text}")
        _write(output, results, sections)
    rows = []
    for part in trainings(_SMOKE.value):
        command = ["-m", "benchmarks.gpu", f"--part={json.dumps(vars(part))}"]
        command += [f"--data_dir={_DATA_DIR.value}", f"--problem={_PROBLEM.value}"]
        text = _call(command, environment, end)
        try:
            rows.append(vars(part) | json.loads(text.splitlines()[-1]))
        except (json.JSONDecodeError, IndexError):
            rows.append(vars(part) | {"failed": text[-300:]})
        results["training"] = rows
        _write(output, results, [*sections, _training_table(rows)])
    print(output.with_suffix(".md").read_text())


def train(part):
    """Trains, and returns the figures."""
    from benchmarks import measure
    from trainer import registry
    from trainer.training import loop
    from trainer.training.run import Run

    hparams = registry.hparams_sets.get(part.hparams_set)().override(part.hparams)
    hparams = dataclasses.replace(hparams, optimizer=part.optimizer)
    result = loop.train(
        Run(
            problem=_PROBLEM.value,
            data_dir=_DATA_DIR.value,
            hparams=hparams,
            train_steps=part.steps,
            dtype=part.dtype,
            xla_compile="true",
            eval_steps=4 if part.what == "speed" else 0,
            label=f"{part.what} {part.optimizer}",
        )
    )
    return {
        "tokens_per_second": result.tokens_per_second,
        "state_scalars": result.state_scalars,
        "parameters": result.model.count_params(),
        "nats_per_token": result.evaluations[-1][1].nats_per_token,
        "device_peak_bytes": measure.device_peak_bytes(),
        "environment": measure.environment(),
    }


def _call(command, environment, end):
    left = end - time.monotonic()
    if left < 5:
        return "left out: no time"
    print(f"{left:.0f} s left: python {' '.join(command)}", file=sys.stderr)
    try:
        done = subprocess.run(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            env=environment,
            timeout=left,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return "ended: no time"
    return done.stdout.strip() or f"failed with status {done.returncode}"


def _training_table(rows):
    lines = ["## Training\n", rows[0].get("environment", ""), ""]
    lines.append(
        "| part | optimizer | model | dtype | steps | tokens/s | peak bytes on the "
        "device | state scalars | dev nats per token |"
    )
    lines.append("|---" * 9 + "|")
    for r in rows:
        cells = [r["what"], r["optimizer"], r["hparams_set"], r["dtype"], r["steps"]]
        if "failed" in r:
            cells += ["failed", "", "", ""]
        else:
            peak = r["device_peak_bytes"]
            cells += [
                f"{r['tokens_per_second']:,.0f}",
                f"{peak:,}" if peak else "",
                f"{r['state_scalars']:,}",
                "nan" if r["nats_per_token"] is None else f"{r['nats_per_token']:.4f}",
            ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _write(output, results, sections):
    output.with_suffix(".json").write_text(cli.json_text(results, indent=2) + "\n")
    output.with_suffix(".md").write_text("\n\n".join(sections) + "\n")


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
