r"""Measures on a GPU: updates up to 1e9 parameters, training speed and memory, quality.

    python -m benchmarks.gpu --data_dir=DATA --problem=PROBLEM --output_dir=RESULTS

Needs packed rows from et-datagen, and Keras with JAX (KERAS_BACKEND=jax, no
TensorFlow) or, all but quality, TensorFlow. A part is a process of its own, so that
memory is measured alone. The parts of a stage compile side by side; what is timed is
timed alone. The most important stages come first, and what is not done in `--seconds`
is left out. Every figure is written as soon as it is there: RESULTS/results.jsonl, and
RESULTS/tables.md from it; the losses of quality in RESULTS/log.txt at once, and in
RESULTS/quality, see `trainer.experiments.rate_grid`.
--smoke runs the same on small shapes, on a CPU too.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from absl import flags

from benchmarks import tables
from benchmarks.measure import READY
from trainer.bin import cli
from trainer.errors import unknown
from trainer.experiments.language_modeling import NO_REGULARIZATION

_DATA_DIR = cli.DEFINE_path("data_dir", None, "Folder that et-datagen wrote.")
_PROBLEM = flags.DEFINE_string("problem", None, "Name of the problem.")
_OUTPUT_DIR = cli.DEFINE_path("output_dir", "gpu_results", "Folder for the results.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Small shapes and few steps.")
_SECONDS = cli.DEFINE_count("seconds", 660, "All parts together, at most.")
STAGES = ("update", "speed", "memory", "quality", "largest")
_STAGES = flags.DEFINE_list("stages", list(STAGES), "What to measure.")
_QUALITY_STEPS = cli.DEFINE_count("quality_steps", 3000, "Steps of a quality run.")
_PROFILE = flags.DEFINE_bool("profile", False, "Keep a trace of et2_orthogonal.")
# Optimizers whose update is measured, by shapes: what fits the card side by side.
UPDATES = {
    "transformer_23m": "sgd,adam,adafactor,muon,et1,et2,et3,et2_rank1,et2_orthogonal,"
    "et2_orthogonal_half,et2_orthogonal_momentum,et2_orthogonal_momentum_half",
    "transformer_1b": "sgd,adam,et2_orthogonal_half,et2_orthogonal_momentum_half",
}
SPEED = (
    "et2_orthogonal_momentum_half,et2_orthogonal_half,et2_orthogonal_momentum,"
    "et2_orthogonal,adam,sgd,et2_rank1,muon".split(",")
)
PROFILED = ("sgd", "et2_orthogonal_half")
MEMORY = "sgd,adam,et2_rank1,et2_orthogonal".split(",")
QUALITY = "et2_orthogonal,adam,muon,adagrad,et2_rank1,et1,et2,et3,sgd"
LARGEST = "adam,et2_orthogonal,et2_orthogonal_momentum,sgd".split(",")


@dataclasses.dataclass(frozen=True)
class Part:
    """Names one process: its stage and its command after `python -m`."""

    stage: str
    name: str
    command: tuple[str, ...]
    timed: bool = True  # it says when it is ready, and waits for its turn
    table: str | None = None  # file that it leaves, in place of figures it prints


def main(argv):
    cli.no_arguments(argv)
    cli.require(_DATA_DIR, _PROBLEM)
    from trainer.data import dataset

    dataset.load_description(_DATA_DIR.value, _PROBLEM.value)
    for stage in _STAGES.value:
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
    output = pathlib.Path(_OUTPUT_DIR.value)
    output.mkdir(parents=True, exist_ok=True)
    results = Results(output)
    kit = Kit(output, results, time.monotonic() + _SECONDS.value)
    for stage in _STAGES.value:
        kit.run([p for p in parts() if p.stage == stage])
    print(results.tables())


def parts():
    """Returns all parts, in the order of their importance."""
    return [*_updates(), *_speeds(), *_memories(), _quality(), *_largest()]


def _updates():
    table = {"1e6": "sgd,adam,et2_orthogonal"} if _SMOKE.value else UPDATES
    for preset, names in table.items():
        for name in names.split(","):
            command = [
                "benchmarks.optimizer_step",
                f"--preset={preset}",
                f"--optimizers={name}",
                "--updates=10",
                "--rounds=5",
                "--wait",
            ]
            if _PROFILE.value and name.startswith("et2_"):
                command.append(_profile(f"{preset}_{name}"))
            yield Part("update", f"{name} {preset}", tuple(command))


def _profile(name):
    return f"--profile={_OUTPUT_DIR.value}/profile/{name}"


def _training(stage, name, size, hparams, steps, *more):
    command = (
        "benchmarks.gpu_training",
        f"--data_dir={_DATA_DIR.value}",
        f"--problem={_PROBLEM.value}",
        f"--optimizer={name}",
        f"--hparams_set={'transformer_tiny' if _SMOKE.value else size}",
        f"--hparams={NO_REGULARIZATION}{hparams}",
        f"--train_steps={steps}",
        "--wait",
    )
    return Part(stage, name, (*command, *more))


def _speeds():
    batch, steps = (1024, 32) if _SMOKE.value else (16384, 80)
    hparams = f"batch_size={batch},learning_rate_warmup_steps=1000"
    for name in SPEED:
        more = []
        if _PROFILE.value and name in PROFILED:
            more.append(_profile(f"training_{name}"))
        yield _training("speed", name, "transformer_base", hparams, steps, *more)
    size = "transformer_tiny" if _SMOKE.value else "transformer_base"
    command = "benchmarks.trainer_throughput --worker=hugging_face_compiled --wait"
    command += f" --hparams_set={size} --batch_size={batch} --dtype=mixed_bfloat16"
    yield Part("speed", "hugging_face_compiled", tuple(command.split()))


def _memories():
    layers = 2 if _SMOKE.value else 12
    hparams = f"num_hidden_layers={layers},batch_size=1024"
    for name in MEMORY:
        yield _training("memory", name, "transformer_big", hparams, 32)


def _quality():
    output = pathlib.Path(_OUTPUT_DIR.value) / "quality"
    command = [
        "trainer.experiments.rate_grid",
        f"--data_dir={_DATA_DIR.value}",
        f"--problem={_PROBLEM.value}",
        f"--output_dir={output}",
    ]
    if _SMOKE.value:
        command += ["--hparams=batch_size=1024", "--entries=adam", "--seeds=1"]
    else:
        command += [
            "--scale=night",
            "--hparams_set=transformer_base",
            f"--train_steps={_QUALITY_STEPS.value}",
            "--warmups=300",
            f"--entries={QUALITY}",
        ]
    table = str(output / "table.md")
    return Part("quality", "rate_grid", tuple(command), timed=False, table=table)


def _largest():
    command = ["benchmarks.memory", "--json"]
    if _SMOKE.value:
        command += ["--budget=2GB", "--hidden_size=64", "--most_layers=2"]
    else:
        command += ["--budget=16GB", "--hidden_size=2048"]
    for name in LARGEST:
        parts = (*command, f"--optimizers={name}")
        yield Part("largest", name, parts, timed=False)


class Kit:
    """Runs the parts, until the time is over.

    Args:
        output: folder for what the parts say.
        results: `Results`.
        end: time (monotonic) at which all parts are ended.
    """

    def __init__(self, output, results, end):
        self._output = output
        self._results = results
        self._processes = []
        self._end = end
        # The allocator takes memory as it is needed, so that its peak says something.
        # What one process found out about its products serves the others.
        self._environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_COMPILATION_CACHE_DIR": str(output / "cache"),
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        }

    def run(self, stage):
        """Runs the parts of a stage: they compile side by side, and take turns."""
        if not stage:
            return
        # What is timed is timed when all have compiled, and alone.
        compiled = threading.Barrier(len(stage)) if stage[0].timed else None
        turn = threading.Lock()
        with concurrent.futures.ThreadPoolExecutor(len(stage)) as pool:
            try:
                list(pool.map(lambda part: self._run(part, compiled, turn), stage))
            except BaseException:  # interrupted
                for process in self._processes:
                    _kill(process)
                raise

    def _run(self, part, compiled, turn):
        """Runs a part, and keeps its figures."""
        began = time.monotonic()
        left = self._end - began
        if left < 5:
            if compiled:
                compiled.abort()
            self._results.add(part, {"failed": "left out: no time"})
            return
        print(f"{left:.0f} s left: {part.stage} {part.name}", file=sys.stderr)
        with open(self._output / "log.txt", "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *part.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                text=True,
                start_new_session=True,  # it may have processes of its own
            )
        self._processes.append(process)
        timer = threading.Timer(left, _kill, [process])
        timer.start()
        try:
            if part.timed:
                figures = self._in_turn(process, compiled, turn)
            else:
                figures = _last_json(process.stdout)
            if part.table and process.wait() == 0:
                figures = {"table": pathlib.Path(part.table).read_text("utf-8")}
        finally:
            timer.cancel()
            _kill(process)
        if not figures:
            ended = "no time" if time.monotonic() > self._end else "see log.txt"
            figures = {"failed": f"status {process.wait()}: {ended}"}
        figures["wall_seconds"] = round(time.monotonic() - began, 1)
        self._results.add(part, figures)

    def _in_turn(self, process, compiled, turn):
        """Waits until all parts are ready and it is the turn of this one."""
        for line in process.stdout:
            if line.strip() == READY:
                break
        with contextlib.suppress(threading.BrokenBarrierError):
            compiled.wait(max(0.0, self._end - time.monotonic()))
        with turn, contextlib.suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.flush()
            return _last_json(process.stdout)
        return {}


def _kill(process):
    """Ends a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_json(lines):
    """Returns the last line of JSON that a process prints; {} if there is none."""
    figures = {}
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            figures = found if isinstance(found, dict) else figures
    return figures


class Results:
    """Keeps the figures of the parts, and writes each as soon as it is there."""

    def __init__(self, output):
        self._output = output
        self._rows = []
        self._lock = threading.Lock()

    def add(self, part, figures):
        """Adds the figures of a part."""
        row = {"stage": part.stage, "name": part.name, **figures}
        with self._lock:
            self._rows.append(row)
            with open(self._output / "results.jsonl", "a", encoding="utf-8") as file:
                file.write(cli.json_text(row) + "\n")
            (self._output / "tables.md").write_text(self.tables() + "\n")
        print(f"{part.stage} {part.name}: {_short(figures)}", file=sys.stderr)

    def tables(self):
        """Returns the figures as Markdown."""
        return tables.gpu(self._rows)


def _short(figures):
    names = (
        "failed",
        "tokens_per_second",
        "device_peak_bytes",
        "layers",
        "wall_seconds",
    )
    return ", ".join(f"{n} {figures[n]}" for n in names if n in figures)


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
