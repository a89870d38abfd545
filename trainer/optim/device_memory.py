"""What each of several devices holds and sends in training, by optimizer."""

import dataclasses

from extreme_tensoring_tf.memory import MemoryReport


@dataclasses.dataclass(frozen=True)
class Share:
    """Holds the bytes of one device: weights, gradients, state, and what it sends."""

    name: str
    weights: float
    gradients: float
    state: float
    wire: float  # a step

    @property
    def held(self) -> float:
        return self.weights + self.gradients + self.state


def shares(report: MemoryReport, devices: int) -> list[Share]:
    """Returns what a device has of a model, by optimizer and way of sharing.

    Sums over N devices and their parts travel in rings, (N - 1) / N of an array each
    way. P is the bytes of the weights, of which gradients take as many, S the state.

        all of it on each device    2 P on the wire: gradients are summed
        ZeRO-1                      2 P; state is cut into N parts: a device receives
                                    the sum of its part, and sends its new weights
        FSDP                        3 P; weights and gradients are cut, too: weights
                                    are fetched for the forward pass and the backward.
                                    A state of a few vectors stays whole

    Source: Rajbhandari et al. 2020, "ZeRO". Activations are not counted: they depend
    on the batch, and are the same in each.

    Args:
        report: `memory_report` of the model. Adam is among its optimizers.
        devices: N.
    """
    entries = sum(v["entries"] for v in report.variables)
    weights = 4.0 * entries
    way = (devices - 1) / devices
    cut = weights / devices
    found = []
    for name, total in report.totals.items():
        state = float(total["bytes"])
        found.append(Share(name, weights, weights, state, 2 * way * weights))
        if name == "adam":
            part = state / devices
            found.append(
                Share("adam, ZeRO-1", weights, weights, part, 2 * way * weights)
            )
            found.append(Share("adam, FSDP", cut, cut, part, 3 * way * weights))
        if name == "et2":
            found.append(Share("et2, FSDP", cut, cut, state, 3 * way * weights))
    return found


def table(report: MemoryReport, devices: int) -> str:
    """Returns `shares` as text, the sizes in units of 1000."""
    entries = sum(v["entries"] for v in report.variables)
    head = ["a device holds", "weights", "gradients", "state", "in all", "sends a step"]
    rows = [head]
    for share in shares(report, devices):
        sizes = (share.weights, share.gradients, share.state, share.held, share.wire)
        rows.append([share.name, *map(text_of, sizes)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.rjust(w) if c else cell.ljust(w)
            for c, (cell, w) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return "\n".join(
        [f"{entries:,} parameters in float32 on {devices} devices", "", *lines]
    )


def text_of(size: float) -> str:
    """Returns a number of bytes with three digits and a unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 999.5 else f"{size:,.0f} TB"
