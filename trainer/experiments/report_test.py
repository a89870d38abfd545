import itertools
import math

from trainer.experiments import report

# As in results: many optimizers, some of them with nearly the same state and loss.
CROWD = {
    "sgd": (0, [11400, 11500]),
    "etinf": (27, [10000, 22000]),
    "et2": (1176, [4700, 4900]),
    "et2_rank1": (1176, [2840, 2850]),
    "et2_rank1_rows": (3232, [2640, 2700]),
    "et2_rank1_rows_short": (3232, [2530, 2560]),
    "adagrad": (657_920, [3000, 3600]),
    "adam_mini": (663_701, [2560, 2570]),
    "adafactor": (664_732, [2650, 2740]),
    "slim_adam": (664_832, [2530, 2550]),
    "muon": (922_624, [1950, 1970]),
    "adam": (1_315_840, [2410, 2450]),
}


def test_names_of_points_do_not_overlap(tmp_path, monkeypatch):
    drawn = []

    def label(axes, points, original=report.label):
        original(axes, points)
        drawn.extend(axes.texts)
        renderer = axes.figure.canvas.get_renderer()
        extents = [text.get_window_extent(renderer) for text in axes.texts]
        whole = axes.figure.bbox
        for extent in extents:
            assert whole.x0 <= extent.x0 and extent.x1 <= whole.x1
            assert whole.y0 <= extent.y0 and extent.y1 <= whole.y1
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))

    monkeypatch.setattr(report, "label", label)
    report.memory_plot(tmp_path / "p", CROWD, "perplexity", (1500, "entropy"), True)
    assert {text.get_text() for text in drawn} == {*CROWD, "entropy"}
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_a_single_point_has_a_name(tmp_path):
    report.memory_plot(tmp_path / "p", {"adam": (2, [1.0])}, "loss")
    # One point, whose logarithm does not give it back; runs that diverged.
    for points in ({"sgd": (0, [3388933.7426300887])}, {"sgd": (0, [math.inf])}):
        report.memory_plot(tmp_path / "p", points, "loss", (13.5, "floor"), True)
        report.memory_plot(tmp_path / "p", points, "loss", log_y=True)
    assert (tmp_path / "p.svg").stat().st_size > 1000
