"""Shows the figures of benchmarks as Markdown tables."""

from trainer.experiments import report


def updates(figures):
    """Returns the figures of `optimizer_step.measure` as Markdown."""
    rows = figures["optimizers"]
    sgd, adam = (rows.get(peer, {}).get("milliseconds") for peer in ("sgd", "adam"))
    lines = [
        "| optimizer | ms | / sgd | / adam | state bytes | temporary / largest "
        "variable | first call s | of copy speed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        temporary, time_taken = r["temporary_bytes"], r["milliseconds"]
        cells = [
            f"{time_taken:,.0f}" if time_taken >= 1000 else f"{time_taken:.3g}",
            _cell(sgd and time_taken / sgd, ".2f"),
            _cell(adam and time_taken / adam, ".2f"),
            f"{r['state_bytes']:,}",
            _cell(
                None
                if temporary is None
                else temporary / figures["largest_variable_bytes"],
                ".2f",
            ),
            f"{r['compile_seconds']:.1f}",
            _cell(r.get("share_of_copy_bandwidth"), ".0%"),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value, form):
    return "" if value is None else format(value, form)


def largest(rows):
    """Returns the figures of `memory.largest` as Markdown: (name, layers, figures)."""
    columns = ("optimizer", "layers", "parameters", "peak bytes")
    return report.markdown(
        columns,
        [
            (n, layers, f.get("parameters", 0), f.get("peak", 0))
            for n, layers, f in rows
        ],
    )


def programs(found):
    """Returns the figures of `gpu_programs.trial` as Markdown: {optimizer: figures}."""
    sgd = found.get("sgd", {}).get("kernels")
    columns = (
        "optimizer",
        "kernels a step",
        "beside sgd's",
        "peak GB",
        "state scalars",
    )
    return report.markdown(
        columns,
        [
            (
                name,
                f["kernels"],
                _cell(sgd and f["kernels"] - sgd, "+,d"),
                f"{f['peak_bytes'] / 1e9:.2f}",
                f["state_scalars"],
            )
            for name, f in found.items()
        ],
    )


def paper(share, cards, bytes_of_weight):
    """Returns hours and memory of runs of the paper's size as Markdown.

    Args:
        share: of the peak that training reaches.
        cards: {name: peak, FLOP/s}.
        bytes_of_weight: {optimizer: bytes of a weight, its gradient and its state}.
    """
    from trainer.training import paper_runs

    head = ["model", "weights", *(f"{name}, GB" for name in bytes_of_weight)]
    head += [f"{name}, hours" for name in cards]
    rows = []
    for name, model in paper_runs.MODELS.items():
        weights = paper_runs.weights(model)
        gigabytes = [f"{b * weights / 1e9:.2f}" for b in bytes_of_weight.values()]
        hours = [f"{paper_runs.hours(model, share * c):.1f}" for c in cards.values()]
        rows.append((name, weights, *gigabytes, *hours))
    return report.markdown(head, rows)


def gpu(rows):
    """Returns the tables of `benchmarks.gpu`.

    Args:
        rows: one a part: {"stage", "name", and its figures}.
    """
    failed = [r for r in rows if "failed" in r]
    rows = [r for r in rows if "failed" not in r]
    parts, presets = [], {}
    for row in rows:
        if "optimizers" in row:
            presets.setdefault(row["preset"], []).append(row)
    for preset, of_preset in presets.items():
        whole = dict(of_preset[0])
        whole["optimizers"] = {
            n: r for o in of_preset for n, r in o["optimizers"].items()
        }
        parts.append(
            f"### One update: {preset}, {whole['parameters']:,} parameters\n\n"
            f"{whole['environment']}; a copy moves "
            f"{whole['copy_bandwidth'] / 1e9:,.0f} GB/s.\n\n" + updates(whole)
        )
    trained = [r for r in rows if "tokens_per_second" in r]
    for stage in ("speed", "memory"):
        of_stage = [r for r in trained if r["stage"] == stage]
        if of_stage:
            parts.append(f"### Training: {stage}\n\n" + _training(of_stage))
    for row in rows:
        if row["stage"] == "quality":
            parts.append("### Quality\n\n" + row["table"])
    found = [(r["name"], r["layers"], r) for r in rows if r["stage"] == "largest"]
    if found:
        parts.append("### The largest model\n\n" + largest(found))
    if failed:
        lines = [f"- {r['stage']} {r['name']}: {r['failed']}" for r in failed]
        parts.append("### Not measured\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _training(rows):
    about = next((r for r in rows if "flops_per_token" in r), {})
    per_token = about.get("flops_per_token")
    possible = max((r.get("flops_of_matrix_product") or 0 for r in rows), default=0)
    lines = [
        f"{about.get('environment', '')}, {about.get('parameters', 0):,} parameters; a "
        f"large matrix product runs at {possible / 1e12:,.1f} TFLOP/s.\n",
        "| optimizer | tokens/s | / sgd | share of the matrix product | peak GB on the "
        "device | bytes a parameter | state scalars |",
        "|---" * 7 + "|",
    ]
    sgd = next((r["tokens_per_second"] for r in rows if r["name"] == "sgd"), None)
    for r in rows:
        speed, peak = r["tokens_per_second"], r.get("device_peak_bytes")
        cells = [
            r["name"],
            f"{speed:,.0f}",
            f"{speed / sgd:.3f}" if sgd else "",
            f"{speed * per_token / possible:.1%}" if possible and per_token else "",
            f"{peak / 1e9:.2f}" if peak else "",
            f"{peak / about['parameters']:.1f}" if peak and about else "",
            f"{r['state_scalars']:,}" if "state_scalars" in r else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
