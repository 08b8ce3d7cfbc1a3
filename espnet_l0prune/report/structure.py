"""What is left of every block and module, as a heat map with the numbers in it."""

import math
import re
from collections.abc import Mapping

from matplotlib import colormaps
from matplotlib.axes import Axes

Units = Mapping[str, tuple[int, int]]  # by kind: before, now
MODULES = {  # of a block, in the order of computation
    "feed_forward_macaron": "FFN 1",
    "self_attn": "attention",
    "attn": "attention",
    "src_attn": "source att.",
    "conv_module": "conv",
    "cgmlp": "cgMLP",
    "feed_forward": "FFN",
}
BLOCK = re.compile(r"(\w+)\.(?:encoders|decoders)\.(\d+)\.(\w+)$")
CONVOLUTION = re.compile(r"(\w+)\.embed\.conv\.\d+$")
Cell = tuple[float, str]  # share that is left, and its label


def share_left(units: Units) -> float:
    """Of a module: the product over its kinds of units."""
    return math.prod(now / before for before, now in units.values() if before)


def label(units: Units) -> str:
    """The units of the kind that lost most, now and before; else of the first kind that
    is no whole module."""
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
    """Rows of cells: the front end's convolutions, then the modules of each block; None
    where a block has no such module.

    Args:
        modules: units by the path of each module in the model
        network: `encoder` or `decoder`
    """
    front = []
    blocks: dict[int, dict[str, Cell]] = {}
    for path, units in modules.items():
        convolution, module = CONVOLUTION.match(path), BLOCK.match(path)
        share = share_left(units)
        if convolution and convolution[1] == network:
            front.append((share, f"conv {len(front) + 1}\n{label(units)}"))
        elif module and module[1] == network and module[3] in MODULES:
            cells = blocks.setdefault(int(module[2]), {})
            cells[MODULES[module[3]]] = share, label(units)
    rows = {"front end": front} if front else {}
    names = columns(modules, network)
    for i, cells in sorted(blocks.items()):
        rows[f"block {i + 1}"] = [cells.get(name) for name in names]
    return rows


def columns(modules: Mapping[str, Units], network: str = "encoder") -> list[str]:
    """The kinds of modules that the blocks have."""
    there = {m[3] for path in modules if (m := BLOCK.match(path)) and m[1] == network}
    return list(dict.fromkeys(name for kind, name in MODULES.items() if kind in there))


def draw_structure(
    axes: Axes, modules: Mapping[str, Units], network: str = "encoder"
) -> None:
    """Draw what is left: dark is all, light is nothing; the bottom block is the lowest.

    Args:
        modules, network: see `grid`
    """
    rows, names = grid(modules, network), columns(modules, network)
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
