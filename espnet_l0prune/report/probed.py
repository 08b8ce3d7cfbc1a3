"""The pictures of a probe: what each place is worth, and losses against sparsities."""

import math
from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.goal import NETWORKS
from espnet_l0prune.deploy.probe import Probe, Worth
from espnet_l0prune.plugin.structure_plot import arrange, cells_figure, columns
from espnet_l0prune.report.curves import colour, mark
from espnet_l0prune.report.pictures import Picture

BLOCK_COLUMN = "block"  # all that can go of a block


def pictures(probe: Probe) -> Iterator[Picture]:
    """Yield a heat map of each network that has units to close, and the curves.

    Each has its caption as a title.
    """
    for network in NETWORKS:
        worths = [w for w in probe.worths if w.place.startswith(f"{network}.")]
        if worths:
            figure = _heat_map(worths, network)
            caption = (
                f"KL divergence in nats, if all that can go at a place of the {network} "
                "is closed; dark is much, light is little."
            )
            yield _titled(Picture(figure, f"worth_{network}", caption))
    caption = (
        "Loss with the cheapest units closed, before any training, which reaches less: "
        "this is no forecast."
    )
    yield _titled(Picture(_curves(probe), "curves", caption))


def _titled(picture: Picture) -> Picture:
    picture.figure.suptitle(picture.caption, fontsize="small", wrap=True)
    return picture


def _heat_map(worths: Sequence[Worth], network: str) -> Figure:
    places: dict[str, float] = {}  # of several kinds at a place, what harms most
    for worth in worths:
        whole = worth.kind in (None, "blocks")
        path = f"{worth.place}.{BLOCK_COLUMN}" if whole else worth.place
        places[path] = max(worth.whole.harm.kl, places.get(path, 0.0))
    most = math.log1p(max(places.values())) or 1.0
    cells = {
        path: (math.log1p(kl) / most, f"{kl:.2g}" if kl < 100 else f"{kl:,.0f}")
        for path, kl in sorted(places.items())
    }
    names = columns({path: {} for path in cells}, network)
    return cells_figure(arrange(cells, names, network), [*names.values()])


def _curves(probe: Probe) -> Figure:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    for i, (cost, points) in enumerate(probe.curves.items()):
        axes.plot(
            [0, *(100 * point.closed.saved[cost] for point in points)],
            [probe.loss, *(point.closed.harm.loss for point in points)],
            f"{mark(i)}-",
            color=colour(i),
            label=COSTS[cost].label,
        )
    axes.set_xlabel("sparsity (%)")
    axes.set_ylabel("loss before any training")
    axes.legend(frameon=False)
    return figure
