"""Writes tables as Markdown, and pictures as PNG and SVG."""

import contextlib
import functools
import math
import pathlib

from trainer.files import write_atomically
from trainer.files import write_text


def mean_and_spread(values, digits):
    """Returns "MEAN ± HALF", where HALF is half the distance of the extremes."""
    values = [v if math.isfinite(v) else math.inf for v in values]
    mean = f"{sum(values) / len(values):,.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {(max(values) - min(values)) / 2:,.{digits}f}"


def markdown(columns, rows):
    """Returns a table. Cells are strings or whole numbers."""

    def line(cells):
        shown = (f"{c:,}" if isinstance(c, int) else str(c) for c in cells)
        return "| " + " | ".join(shown) + " |"

    return "\n".join([line(columns), "|---" * len(columns) + "|", *map(line, rows)])


def publish(table, output_dir):
    """Prints a table and writes it to table.md."""
    write_text(output_dir / "table.md", table + "\n")
    print(table)


@contextlib.contextmanager
def figure(path, x, y, width=7, log_x=False, log_y=False):
    """Gives axes to draw into, and writes them to `path`.png and .svg at the end."""
    from matplotlib.figure import Figure  # pyplot would keep it, and open windows

    drawing = Figure(figsize=(width, 4.5), layout="constrained")
    axes = drawing.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    yield axes
    for suffix in (".png", ".svg"):
        write_atomically(
            pathlib.Path(path).with_suffix(suffix),
            functools.partial(drawing.savefig, dpi=150),
        )


def memory_plot(path, points, y, floor=None, log_y=False):
    """Draws performance against optimizer state, on a log axis that has room for 0.

    Args:
        path: of the picture.
        points: {optimizer: (state scalars, [y of each seed])}.
        y: label.
        floor: None, or (value, label) of what no model can be below.
        log_y: whether the axis of y is logarithmic, too.
    """
    with figure(path, "optimizer state, scalars", y, log_y=log_y) as axes:
        for name, (scalars, values) in points.items():
            mean = sum(values) / len(values)
            ours = name.startswith("et")
            axes.errorbar(
                scalars,
                mean,
                [[mean - min(values)], [max(values) - mean]],
                fmt="o" if ours else "s",
                color="C0" if ours else "C7",
                capsize=3,
            )
            axes.annotate(name, (scalars, mean), (5, 5), textcoords="offset points")
        if floor:
            axes.axhline(floor[0], color="C3", linestyle=":")
            axes.annotate(
                floor[1],
                (1, floor[0]),
                (-4, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                color="C3",
            )
        axes.set_xscale("symlog", linthresh=100)
        axes.set_xlim(-10, 5 * max(100, *(scalars for scalars, _ in points.values())))
        axes.margins(y=0.15)


def curves_plot(path, curves, x, y, log_x=False, log_y=False):
    """Draws {name: [(x, y), ...]}; extreme tensoring has solid lines."""
    with figure(path, x, y, log_x=log_x, log_y=log_y) as axes:
        for name, points in curves.items():
            style = "-" if "et" in name else "--"
            axes.plot(*zip(*points), style, label=name)
        axes.legend()
