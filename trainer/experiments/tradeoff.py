"""Performance against memory: optimizers compared on one language model.

What the experiments `memory_performance` and `orthogonal_form` share.
"""

import hashlib
import json
import math
import shutil

from trainer.data.tokenizer import EOS_ID
from trainer.experiments import language_modeling
from trainer.hparams import HParams

ORTHOGONAL = (
    "et2_orthogonal",
    "et2_orthogonal_momentum",
    "et2_orthogonal_rows",
    "et2_orthogonal_heads",
)


def conduct(scale, output_dir):
    """Runs what is not finished, and prints and writes the table and the plots.

    Args:
        scale: `language_modeling.Scale`. Its entries are OPTIMIZER or
            OPTIMIZER/NAME=VALUE/..., with hyperparameters of their own.
        output_dir: folder of the results.
    """
    from trainer.experiments import comparison
    from trainer.experiments import report

    for name in scale.entries:  # a wrong one is told before anything is made
        known_constant(name, scale.hparams)
    runs = language_modeling.Runs(scale, output_dir)
    settings = runs.settings() | {"checkpoints": bool(scale.samples)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def folder(name, constant, seed):
        run = f"{name.replace('/', '-')}-c{constant:.3g}-seed{seed}-{digest[:8]}"
        return str(output_dir / "runs" / run)

    def train(name, constant, seed, on_evaluation):
        if scale.samples:
            # What a start that was cut off left has figures of a part of the run.
            shutil.rmtree(folder(name, constant, seed), ignore_errors=True)
        return runs.train(
            f"{name} c={constant:.3g} seed {seed}",
            seed,
            on_evaluation,
            output_dir=folder(name, constant, seed) if scale.samples else None,
            hparams=assignments(name),
            learning_rate_constant=constant,
        )

    compared = comparison.Comparison(
        output_dir,
        settings,
        scale,
        lambda name: known_constant(name, scale.hparams),
        train,
        reuse_trials=not scale.samples,  # a trial leaves no model to draw from
    )
    finished = {name: compared.records(name) for name in scale.entries}
    # Of which text --data_dir was made is not known.
    floor = (
        None if scale.data_dir else language_modeling.known_perplexity(scale.tmp_dir)
    )
    report.publish(table(finished, floor), output_dir)
    plot(finished, floor, output_dir)
    print(f"plots: {output_dir / 'perplexity.png'}, {output_dir / 'curves.png'}")
    if scale.samples:
        name = scale.entries[-1]
        print(f"sampled with {name}:")
        first = folder(name, finished[name][0]["c"], 0)
        print_samples(first, scale.samples)


def assignments(entry):
    """Returns the hyperparameters that an entry OPTIMIZER/NAME=VALUE/... stands for."""
    return ",".join(["optimizer=" + entry.partition("/")[0], *entry.split("/")[1:]])


def known_constant(entry, changes=""):
    """Returns the c of an entry: its own, or that which goes with its optimizer.

    Args:
        entry: see `conduct`.
        changes: hyperparameters of all entries, "name=value,name=value".

    Raises:
        UsageError: the optimizer or a hyperparameter is unknown.
    """
    hparams = HParams().override(changes).override(assignments(entry))
    own = hparams.learning_rate_constant
    return own or language_modeling.known_constant(hparams.optimizer)


def print_samples(output_dir, count):
    """Prints sentences of the model in a run's folder."""
    from trainer.inference import decoding
    from trainer.runs import trained_model

    trained = trained_model.load(output_dir)
    length = trained.max_length
    decoder = decoding.Decoder(trained.model, length, length, decoding.generate)
    for ids in decoder([[]] * count).tolist():
        print("  " + trained.processor.decode([i for i in ids if i > EOS_ID]))


def table(finished, floor=None):
    """Returns a table of {optimizer: records of its seeds}, a line an optimizer."""
    from trainer.experiments import comparison
    from trainer.experiments import report

    columns = ("optimizer", "c", "state scalars", "of the parameters")
    columns += ("nats per token", "perplexity per word", "seconds a run")
    rows = []
    for name, records in finished.items():
        whole = comparison.whole(records)
        if not whole:
            rows.append((name, f"{records[0]['c']:.3g}", "", "", "diverged", "", ""))
            continue
        first = whole[0]
        scalars = first["state_scalars"]
        rows.append(
            (
                name,
                f"{first['c']:.3g}",
                scalars,
                f"{100 * scalars / first['parameters']:.3g}%",
                report.mean_and_spread(_of(records, "nats_per_token"), 4),
                report.mean_and_spread(_of(records, "perplexity_per_word"), 2),
                f"{sum(r['seconds'] for r in whole) / len(whole):.1f}",
            )
        )
    if floor:
        rows.append(("(entropy of the text)", "", "", "", "", f"{floor:.2f}", ""))
    return report.markdown(columns, rows)


def _of(records, figure):
    return [record.get("dev", {}).get(figure, math.nan) for record in records]


def plot(finished, floor, output_dir):
    from trainer.experiments import comparison
    from trainer.experiments import report

    finished = {
        name: whole
        for name, records in finished.items()
        if (whole := comparison.whole(records))
    }
    report.memory_plot(
        output_dir / "perplexity",
        {
            name: (records[0]["state_scalars"], _of(records, "perplexity_per_word"))
            for name, records in finished.items()
        },
        "held-out perplexity per word",
        floor and (floor, "entropy of the text"),
        log_y=True,
    )
    report.curves_plot(
        output_dir / "curves",
        {name: records[0]["curve"] for name, records in finished.items()},
        "step",
        "held-out nats per token",
    )
