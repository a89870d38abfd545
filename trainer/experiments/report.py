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


# Colours that differ for everybody, also by how bright they are (Petroff 2021, arXiv
# 2107.02270), and are told apart on paper by the shape of markers and lines.
STYLE = [
    "petroff10",
    {
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
    },
]
OURS, OTHERS, BOUND = "C0", "C8", "C2"
_PREFIXES = ("et", "orthogonal_", "momentum_")  # of our names, variants too


@contextlib.contextmanager
def figure(path, x, y, log_x=False, log_y=False):
    """Gives axes to draw into, and writes them to `path`.png and .svg at the end."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # pyplot would keep it, and open windows

    with style.context(STYLE):
        drawing = Figure(figsize=(7, 4.5), layout="constrained")
        FigureCanvasAgg(drawing)  # by which texts are measured
        axes = drawing.subplots()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_plain_ticks())
            axes.yaxis.set_minor_formatter(_plain_ticks())
        yield axes
        for suffix in (".png", ".svg"):
            write_atomically(
                pathlib.Path(path).with_suffix(suffix),
                functools.partial(drawing.savefig, dpi=150),
            )


def _plain_ticks():
    """Returns what labels the ticks of a log axis that have room: 2,800, not powers."""
    from matplotlib import ticker

    class Plain(ticker.LogFormatter):
        def __call__(self, x, pos=None):
            return f"{x:,g}" if super().__call__(x, pos) else ""

    return Plain()


def memory_plot(path, points, y, floor=None, log_y=False):
    """Draws performance against optimizer state, on a log axis that has room for 0.

    Args:
        path: of the picture.
        points: {optimizer: (state scalars, [y of each seed])}.
        y: label.
        floor: None, or (value, label) of what no model can be below.
        log_y: whether the axis of y is logarithmic, too.
    """
    finite = {
        name: (scalars, [value for value in values if math.isfinite(value)])
        for name, (scalars, values) in points.items()
    }
    points = {name: point for name, point in finite.items() if point[1]}
    heights = [value for _, values in points.values() for value in values]
    heights += floor[:1] if floor else ()
    with figure(path, "optimizer state, scalars", y, log_y=log_y) as axes:
        if heights:  # Matplotlib's own limits of one point on a log axis may be equal
            axes.set_ylim(*_limits(min(heights), max(heights), log_y))
        for name, (scalars, values) in points.items():
            mean = sum(values) / len(values)
            ours = name.startswith(_PREFIXES)
            axes.errorbar(
                scalars,
                mean,
                [[mean - min(values)], [max(values) - mean]],
                fmt="o" if ours else "s",
                color=OURS if ours else OTHERS,
                capsize=3,
            )
        axes.set_xscale("symlog", linthresh=100)
        axes.set_xlim(-10, 5 * max([100, *(scalars for scalars, _ in points.values())]))
        if floor:
            axes.axhline(floor[0], color=BOUND, linestyle=":")
            axes.annotate(
                floor[1],
                (1, floor[0]),
                (-4, -4),  # below, where no point is
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="top",
                color=BOUND,
            )
        if points:
            label(axes, points)


def _limits(low, high, log):
    """Returns the ends of an axis with room around its lowest and highest point."""
    if log:
        room = max(high / low, 2.0) ** 0.15
        return low / room, high * room
    room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def label(axes, points):
    """Writes the names of points beside them, where no other name and no bar is."""
    import textalloc

    axes.figure.canvas.draw()  # the layout is final
    scalars = [x for x, _ in points.values()]
    means = [sum(values) / len(values) for _, values in points.values()]
    textalloc.allocate(
        axes,
        scalars,
        means,
        list(points),
        x_scatter=scalars,
        y_scatter=means,
        x_lines=[[x, x] for x in scalars],
        y_lines=[[min(values), max(values)] for _, values in points.values()],
        textsize=9,
        linecolor="0.6",
        avoid_label_lines_overlap=True,
    )


def curves_plot(path, curves, x, y, log_x=False, log_y=False):
    """Draws {name: [(x, y), ...]}; extreme tensoring has solid lines."""
    with figure(path, x, y, log_x=log_x, log_y=log_y) as axes:
        for name, points in curves.items():
            style = "-" if name.startswith(_PREFIXES) else "--"
            axes.plot(*zip(*points), style, label=name)
        # Below the axes, where it covers no curve: as many beside each other as fit.
        columns = max(1, 80 // (8 + max(map(len, curves))))
        axes.figure.legend(
            loc="outside lower center", ncols=min(columns, 4), frameon=False
        )
