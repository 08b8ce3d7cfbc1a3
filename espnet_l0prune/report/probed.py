"""The pictures of a probe: what each place is worth, and losses against sparsities."""

import math
from collections.abc import Iterator

from matplotlib.figure import Figure

from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.goal import NETWORKS
from espnet_l0prune.deploy.probe import Probe, Worth
from espnet_l0prune.plugin.structure_plot import arrange, cells_figure, columns
from espnet_l0prune.report.curves import colour, mark
from espnet_l0prune.report.pictures import Picture

BLOCK_COLUMN = "block"  # all that can go of a block


def pictures(probe: Probe) -> Iterator[Picture]:
    """Yield a heat map of each network that has units to close, and the curves."""
    for network in NETWORKS:
        if any(worth.place.startswith(f"{network}.") for worth in probe.worths):
            yield _heat_map(probe, network)
    yield _curves(probe)


def _heat_map(probe: Probe, network: str) -> Picture:
    places: dict[str, Worth] = {}  # of several kinds at a place, what harms most
    for worth in probe.worths:
        whole = worth.kind in (None, "blocks")
        path = f"{worth.place}.{BLOCK_COLUMN}" if whole else worth.place
        if path not in places or worth.whole.harm.kl > places[path].whole.harm.kl:
            places[path] = worth
    most = math.log1p(max(worth.whole.harm.kl for worth in places.values())) or 1.0
    cells = {
        path: (math.log1p(worth.whole.harm.kl) / most, f"{worth.whole.harm.kl:.2g}")
        for path, worth in sorted(places.items())
    }
    names = columns({path: {} for path in cells}, network)
    figure = cells_figure(arrange(cells, names, network), [*names.values()])
    caption = (
        f"The KL divergence, in nats an utterance, if all that can go at a place of the "
        f"{network} is closed; dark is much, light is little."
    )
    return Picture(figure, f"worth_{network}", caption)


def _curves(probe: Probe) -> Picture:
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
    axes.set_yscale("log")
    axes.set_xlabel("sparsity (%)")
    axes.set_ylabel("loss before any training")
    axes.legend(frameon=False)
    caption = (
        "The loss once the cheapest units are closed, before any training, which reaches "
        "less: this is no forecast."
    )
    return Picture(figure, "curves", caption)
