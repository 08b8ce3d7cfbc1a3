"""A heat map shows what is left of every block and module, with numbers in it."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from espnet_l0prune.core.files import replace
from espnet_l0prune.core.goal import NETWORKS
from espnet_l0prune.networks.blocks import KINDS
from espnet_l0prune.networks.sites import find_sites

Units = Mapping[str, tuple[int, int]]  # numbers of units before and now, by kind
WIDTH = "stream", "width"  # a block's width: its name in paths, and in pictures
BLOCKS = (
    r"(?:encoders|decoders|upstream\.encoder\.encoders"
    r"|upstream\.upstream\.model\.encoder\.layers)"
)
BLOCK = re.compile(rf"(\w+)\.{BLOCKS}\.(?:blocks\.)?(\d+)\.(\w+)$")
CONVOLUTIONS = (
    r"(?:(?:.*\.)?embed\.conv\.\d+|encoders\.conv1"
    r"|.*\.conv_layers\.\d+\.0|.*\.layers\.\d+\.conv)"
)
CONVOLUTION = re.compile(rf"(\w+)\.{CONVOLUTIONS}$")
Cell = tuple[float, str]  # the share that is left, and its label


def share_left(units: Units) -> float:
    """Return the share that is left of a module, the product over its kinds of units."""
    return math.prod(now / before for before, now in units.values() if before)


def label(units: Units) -> str:
    """Return the number of units now and before, of the kind that has lost most.

    If none has lost any, it is the number of the first kind that is not a whole module.
    """
    several = [(now / n, now, n) for n, now in units.values() if n > 1]
    if not several:
        return "kept" if share_left(units) else "cut"
    if not share_left(units):
        return "0"
    _, now, before = min(several, key=lambda entry: entry[0])
    return f"{now}/{before}" if now < before else f"{before}"


def grid(
    modules: Mapping[str, Units], network: str = "encoder"
) -> dict[str, list[Cell | None]]:
    """Return the cells of a picture, row by row.

    The rows are the front end's convolutions, the residual stream's width where it has
    become less, and the modules of each block; None stands where a block has no such
    module.

    Args:
        modules: units by the path of each module in the model
        network: `frontend`, `encoder` or `decoder`
    """
    cells = {}
    for path, units in modules.items():
        share = share_left(units)
        block = path.rpartition(".")[0]
        if not share_left(modules.get(block, {})):  # the whole block was cut
            share, units = 0.0, {"blocks": (1, 0)}
        if share < 1 or not path.endswith(f".{WIDTH[0]}"):
            cells[path] = share, label(units)
    return arrange(cells, columns(modules, network), network)


def arrange(
    cells: Mapping[str, Cell], names: Iterable[str], network: str
) -> dict[str, list[Cell | None]]:
    """Return the cells of a network row by row.

    The rows are its convolutions, its residual stream, and each block.

    Args:
        cells: by the path of each module in the model
        names: what the blocks have, by their names in a path; None stands where a block
            has no such module
        network: `frontend`, `encoder` or `decoder`
    """
    front: list[Cell | None] = []
    blocks: dict[int, dict[str, Cell]] = {}
    for path, (share, text) in cells.items():
        convolution, module = CONVOLUTION.match(path), BLOCK.match(path)
        if convolution and convolution[1] == network:
            front.append((share, f"conv {len(front) + 1}\n{text}"))
        elif module and module[1] == network:
            blocks.setdefault(int(module[2]), {})[module[3]] = share, text
    rows = {"front end": front} if front else {}
    if f"{network}.{WIDTH[0]}" in cells:
        rows["stream"] = [cells[f"{network}.{WIDTH[0]}"]]
    for i, found in sorted(blocks.items()):
        rows[f"block {i + 1}"] = [found.get(name) for name in names]
    return rows


def columns(modules: Mapping[str, Units], network: str = "encoder") -> dict[str, str]:
    """Return what the blocks have, in the order of computation.

    These are the names of their branches in a path, with those in a picture, and their
    width where some blocks have less.
    """
    names = {
        m[3]
        for path, units in modules.items()
        if (m := BLOCK.match(path)) and m[1] == network
        if m[3] != WIDTH[0] or share_left(units) < 1
    }
    branches = names - {WIDTH[0]}
    layout = max(KINDS, key=lambda kind: len(branches & kind.layout.keys())).layout
    labels = {name: place.label for name, place in layout.items() if name in branches}
    labels |= {name: name for name in sorted(branches - labels.keys())}
    return labels | ({WIDTH[0]: WIDTH[1]} if WIDTH[0] in names else {})


def draw_structure(
    axes: Axes, modules: Mapping[str, Units], network: str = "encoder"
) -> None:
    """Draw what is left: dark is all, light is nothing; the first block is at the bottom.

    Args:
        modules, network: see `grid`
    """
    draw_cells(axes, grid(modules, network), [*columns(modules, network).values()])


def draw_cells(
    axes: Axes, rows: Mapping[str, Sequence[Cell | None]], names: Sequence[str]
) -> None:
    """Draw cells with their texts, the darker the larger their shares are.

    Args:
        rows: what `arrange` has returned; the first one is at the bottom
        names: the labels of the columns
    """
    colours = colormaps["cividis_r"]
    for y, cells in enumerate(rows.values()):
        for x, cell in enumerate(cells):
            if cell is None:
                continue
            share, text = cell
            colour = colours(share)
            dark = sum(colour[:3]) < 1.5
            axes.barh(y, 0.94, height=0.88, left=x - 0.47, color=colour)
            axes.text(
                x,
                y,
                text,
                ha="center",
                va="center",
                fontsize="small",
                color="white" if dark else "black",
            )
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def structure_figure(modules: Mapping[str, Units], network: str) -> Figure:
    """Return a figure as large as the grid needs; see `grid` for the arguments."""
    names = [*columns(modules, network).values()]
    return cells_figure(grid(modules, network), names)


def cells_figure(
    rows: Mapping[str, Sequence[Cell | None]], names: Sequence[str]
) -> Figure:
    """Return a figure as large as the cells need; see `draw_cells` for the arguments."""
    size = 1.4 + max(len(names), 3), 0.9 + 0.32 * len(rows)
    figure = Figure(figsize=size, layout="constrained")
    draw_cells(figure.subplots(), rows, names)
    return figure


def units_left(network: nn.Module, path: str) -> dict[str, Units]:
    """Return the units of each module, now and once the closed ones are cut.

    Args:
        network: ESPnet's front end, encoder or decoder
        path: path of the network in the model
    """
    return {
        f"{path}.{site.name}": {
            kind: (n, int(site.survivors(kind).sum()) if kind in site.gates else n)
            for kind, n in site.sizes.items()
        }
        for site in find_sites(network)
    }


def plot_epoch(
    model: nn.Module,
    epoch: int,
    folder: Path,
    summary_writer: Any,
    use_wandb: bool,
) -> None:
    """Draw what the open gates leave, as ESPnet draws attention plots.

    The picture goes into a folder, and into TensorBoard and W&B where these are used.

    Args:
        model: ESPnet's model
        epoch: number of the epoch
        folder: the folder for NETWORK.EPOCHep.png
        summary_writer: that of TensorBoard, or None
        use_wandb: whether W&B is used
    """
    for path in NETWORKS:
        network = getattr(model, path, None)
        modules = units_left(network, path)
        if not any(site.gates for site in find_sites(network)):
            continue
        figure = structure_figure(modules, path)
        picture = folder / f"{path}.{epoch}ep.png"
        replace(picture, partial(figure.savefig, format="png"))
        if summary_writer is not None:
            summary_writer.add_figure(f"structure/{path}", figure, epoch)
        if use_wandb:
            import wandb

            wandb.log({f"structure/{path}": wandb.Image(figure)})
