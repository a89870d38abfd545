r"""Memory against performance: one model, many optimizers, one table.

    python -m trainer.experiments.memory_performance --preset=demo
    python -m trainer.experiments.memory_performance --preset=gbw \
        --tmp_dir=FOLDER_OF_THE_UNPACKED_ARCHIVE --output_dir=gbw_output

The learning-rate constant c of each optimizer is the best of --candidates values,
three times apart, by development perplexity. The search goes on while the best is
the largest or smallest tried, and ends with half a step to both sides; one
candidate takes the optimizer's own c. Finished runs are kept in
OUTPUT_DIR/results.jsonl and are not run again.
"""

import dataclasses
import json
import math
import pathlib
import time

from absl import flags

from trainer.bin import runner
from trainer.tokenizer import EOS_ID

PRESETS = {
    # Small enough for a coffee break on two cores.
    "demo": {
        "tmp_dir": "testdata",
        "output_dir": "demo_output",
        "max_length": 64,
        "hparams": "hidden_size=64,filter_size=256,num_heads=2,batch_size=2048,"
        "learning_rate_warmup_steps=200",
        "train_steps": 900,
        "candidates": 1,
        "optimizers": [
            "sgd",
            "adagrad",
            "adam",
            "et1",
            "et2",
            "et3",
            "et2_rank1",
        ],
        "samples": 3,
    },
    # Real GBW sentences: about half a minute a run on two cores.
    "gbw": {
        "tmp_dir": "",
        "output_dir": "gbw_output",
        "max_length": 256,
        "hparams": "batch_size=2048,learning_rate_warmup_steps=200",
        "train_steps": 600,
        "candidates": 3,
        "optimizers": [
            "sgd",
            "adagrad",
            "adam",
            "adafactor",
            "et1",
            "et2",
            "et3",
            "etinf",
            "et1_rank1",
            "et2_rank1",
            "et3_rank1",
        ],
        "samples": 0,
    },
}
# A short run sees its data about once: nothing to regularize.
NO_REGULARIZATION = (
    "layer_prepostprocess_dropout=0,attention_dropout=0,relu_dropout=0,"
    "label_smoothing=0,"
)

_PRESET = flags.DEFINE_enum("preset", "demo", list(PRESETS), "Which settings.")
_TMP_DIR = flags.DEFINE_string("tmp_dir", None, "Folder of the text.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the results.")
_OPTIMIZERS = flags.DEFINE_list("optimizers", None, "Names, comma-separated.")
_TRAIN_STEPS = flags.DEFINE_integer("train_steps", None, "Steps of each run.")
_CANDIDATES = flags.DEFINE_integer("candidates", None, "Values of c, at least.")
_HPARAMS = flags.DEFINE_string("hparams", "", "Overrides of the preset's.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of initialization and data order.")

PROBLEM = "languagemodel_lm1b2k_packed"
HPARAMS_SET = "transformer_tiny"


def main(argv):
    runner.no_arguments(argv)
    preset = PRESETS[_PRESET.value]

    def setting(name, flag):
        return preset[name] if flag.value is None else flag.value

    from trainer import datagen
    from trainer import dataset
    from trainer import registry

    output_dir = pathlib.Path(setting("output_dir", _OUTPUT_DIR))
    problem = registry.problems.get(PROBLEM)
    data_dir = output_dir / "data"
    started = time.time()
    if not dataset.Paths(data_dir, PROBLEM).description.is_file():
        datagen.generate(
            problem,
            setting("tmp_dir", _TMP_DIR),
            data_dir,
            preset["max_length"],
        )
    hparams = registry.hparams_sets.get(HPARAMS_SET)().override(
        NO_REGULARIZATION + preset["hparams"]
    )
    experiment = Experiment(
        output_dir=output_dir,
        hparams=hparams.override(_HPARAMS.value),
        train_steps=setting("train_steps", _TRAIN_STEPS),
        candidates=setting("candidates", _CANDIDATES),
        seed=_SEED.value,
        keep_models=preset["samples"] > 0,
    )
    best = [experiment.tune(name) for name in setting("optimizers", _OPTIMIZERS)]
    floor = known_perplexity(setting("tmp_dir", _TMP_DIR))
    print(table(best, floor))
    plot(best, floor, output_dir / "perplexity_against_memory.png")
    print(f"plot: {output_dir / 'perplexity_against_memory.png'}")
    if preset["samples"]:
        experiment.print_samples(best[-1], preset["samples"])
    print(f"total: {time.time() - started:.0f} s")


@dataclasses.dataclass
class Experiment:
    output_dir: pathlib.Path
    hparams: object
    train_steps: int
    candidates: int
    seed: int
    keep_models: bool = False  # as runs, with checkpoints and summaries

    @property
    def data_dir(self):
        return str(self.output_dir / "data")

    @property
    def results_file(self):
        return self.output_dir / "results.jsonl"

    def tune(self, optimizer):
        """The best result of an optimizer over its rate constants."""
        from trainer import registry

        center = registry.optimizers.get(optimizer).learning_rate_constant
        results = {}

        def nats(exponent):
            """Development loss at c = center * 3**exponent."""
            if exponent not in results:
                results[exponent] = self.run(optimizer, center * 3.0**exponent)
            return results[exponent]["dev"]["nats_per_token"]

        best = 0.0
        if self.candidates > 1:
            grid = [k - self.candidates // 2 for k in range(self.candidates)]
            best = min(grid, key=nats)
            while best in (min(results), max(results)) and len(results) < 8:
                best = min((best - 1.0, best, best + 1.0), key=nats)
            best = min((best - 0.5, best, best + 0.5), key=nats)
        nats(best)
        return results[best]

    def run(self, optimizer, constant):
        """Trains once, or reads the result of the run that was made before."""
        hparams = dataclasses.replace(
            self.hparams,
            optimizer=optimizer,
            learning_rate_constant=float(f"{constant:.3g}"),
        )
        key = {
            "hparams": dataclasses.asdict(hparams),
            "train_steps": self.train_steps,
            "seed": self.seed,
        }
        for result in self.finished():
            if all(result[k] == v for k, v in key.items()):
                return result
        import keras

        from trainer import training

        keras.backend.clear_session(free_memory=True)
        result = training.train(
            training.Run(
                problem=PROBLEM,
                data_dir=self.data_dir,
                hparams=hparams,
                output_dir=self._run_dir(key) if self.keep_models else None,
                train_steps=self.train_steps,
                seed=self.seed,
                eval_frequency=max(1, self.train_steps // 3),
                label=f"{optimizer} c={hparams.learning_rate_constant:g}",
            )
        )
        final = result.evaluations[-1][1].to_dict()
        if not math.isfinite(final["nats_per_token"]):
            final = {k: math.inf for k in final}  # diverged: never the best
        record = key | {
            "optimizer": optimizer,
            "constant": hparams.learning_rate_constant,
            "state_scalars": result.state_scalars,
            "state_bytes": 4 * result.state_scalars,
            "parameters": result.model.count_params(),
            "seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
            "train_loss": result.train_loss,
            "dev": final,
            "curve": [(s, e.nats_per_token) for s, e in result.evaluations],
        }
        with open(self.results_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def _run_dir(self, key):
        name = "{optimizer}-{learning_rate_constant:g}".format(**key["hparams"])
        return str(self.output_dir / "runs" / f"{name}-seed{key['seed']}")

    def print_samples(self, result, count):
        """Prints sentences of the model that a run ended with."""
        from trainer import decoding
        from trainer import trained_model

        trained = trained_model.load(self._run_dir(result), self.data_dir)
        length = trained.max_length
        decoder = decoding.Decoder(trained.model, length, length, decoding.generate)
        print(f"sampled with {result['optimizer']}:")
        for ids in decoder([[]] * count).tolist():
            print("  " + trained.processor.decode([i for i in ids if i > EOS_ID]))

    def finished(self):
        if not self.results_file.is_file():
            return []
        lines = self.results_file.read_text().splitlines()
        return [json.loads(line) for line in lines]


def known_perplexity(tmp_dir):
    """Perplexity per word of the grammar that wrote the text, if it is known."""
    path = pathlib.Path(tmp_dir) / "entropy.json"
    if not path.is_file():
        return None
    return json.loads(path.read_text())["dev_perplexity_per_word"]


def table(results, floor=None):
    """One line an optimizer, by the memory it needs."""
    lines = [
        f"{'optimizer':<12}{'c':>8}{'state scalars':>15}{'state bytes':>13}"
        f"{'nats/token':>12}{'perplexity/word':>17}{'seconds':>9}"
    ]
    for r in results:
        lines.append(
            f"{r['optimizer']:<12}{r['constant']:>8g}{r['state_scalars']:>15,}"
            f"{r['state_bytes']:>13,}{r['dev']['nats_per_token']:>12.4f}"
            f"{r['dev']['perplexity_per_word']:>17.2f}{r['seconds']:>9.1f}"
        )
    if floor:
        lines.append(f"{'(entropy of the text)':<60}{floor:>17.2f}")
    return "\n".join(lines)


def plot(results, floor, path):
    """Perplexity per word against optimizer memory, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for r in results:
        x, y = r["state_bytes"], r["dev"]["perplexity_per_word"]
        ours = r["optimizer"].startswith("et")
        axes.plot(x, y, "o" if ours else "s", color="C0" if ours else "C7")
        axes.annotate(r["optimizer"], (x, y), (5, 5), textcoords="offset points")
    if floor:
        axes.axhline(floor, color="C3", linestyle=":")
        axes.annotate(
            "entropy of the text",
            (1, floor),
            (-4, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color="C3",
        )
    axes.set_xscale("symlog", linthresh=100)
    axes.set_xlim(-10, 5 * max(100, *(r["state_bytes"] for r in results)))
    axes.margins(y=0.15)
    axes.set_xlabel("optimizer state, bytes")
    axes.set_ylabel("held-out perplexity per word")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


run = runner.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
