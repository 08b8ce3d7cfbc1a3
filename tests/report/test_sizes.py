"""The curve of errors against sizes: what it shows, and when there is none."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from espnet_l0prune.deploy.inspect import Inspection, Row
from espnet_l0prune.report.curves import best_error, draw_sizes
from espnet_l0prune.report.history import Epoch
from espnet_l0prune.report.pictures import sizes
from espnet_l0prune.report.run import Run


def trained(name: str, figures: list[dict], parameters: int, scope=None) -> Run:
    """A run of a model of 1 million parameters, or of what has been left of it."""
    units = {"heads": (100, parameters // 10_000)}
    amounts = {cost: {"model": parameters} for cost in ("params", "macs")}
    inspection = Inspection(
        rows=[Row("encoder.a", units, {}, {})],
        seconds=10.0,
        tokens=40,
        amounts=amounts,
        scope=scope,
        expected_sparsity={},
        actual_sparsity={},
        reachable_sparsity={},
    )
    epochs = [Epoch(i, i, 1.0, {}, valid) for i, valid in enumerate(figures, 1)]
    return Run(name, Path(name), {}, epochs, inspection, [], None, [])


DENSE = trained("dense", [{"acc": 0.5}, {"acc": 0.9}, {"acc": 0.8}], 1_000_000)
HALF = trained("half", [{"acc": 0.7, "cer_ctc": 0.2}], 500_000)
LESS = trained("less", [{"acc": 0.85, "cer_ctc": 0.3}], 700_000)


def test_the_line_leads_from_size_to_size():
    axes = Figure().subplots()
    draw_sizes(axes, [DENSE, HALF, LESS], "acc", "params")
    *points, line = axes.lines
    assert [tuple(point.get_xydata()[0]) for point in points] == [
        (1.0, pytest.approx(10)),  # of its best epoch
        (0.5, pytest.approx(30)),
        (0.7, pytest.approx(15)),
    ]
    assert [point.get_marker() == "*" for point in points] == [True, False, False]
    assert [point.get_label() for point in points] == ["dense", "half", "less"]
    assert line.get_xdata().tolist() == [0.5, 0.7, 1.0]
    assert line.get_ydata().tolist() == pytest.approx([30, 15, 10])


def test_a_figure_that_all_have_is_shown():
    gated = trained("gated", [{"acc": 0.99}], 600_000, scope="encoder")
    found = [*sizes([DENSE, HALF, LESS, gated])]
    assert [picture.name for picture in found] == ["validation_params", "validation_macs"]
    assert "Next-token error (%) of the best epoch" in found[0].caption
    other = trained("other", [{"cer_ctc": 0.1}], 400_000)
    (picture, *_) = sizes([HALF, LESS, other])
    assert "CER of the CTC" in picture.caption
    assert best_error(HALF, "cer_ctc") == pytest.approx(20)
    assert best_error(other, "acc") is None


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [HALF],
        [DENSE, trained("again", [{"acc": 0.5}], 1_000_000)],  # nothing was cut
        [DENSE, trained("new", [], 500_000)],
        [DENSE, trained("loss", [{"loss": 1.0}], 500_000)],
    ],
)
def test_otherwise_there_is_no_curve(runs):
    assert not [*sizes(runs)]
