"""Commands show what they have measured as tables of a name and numbers."""

from collections.abc import Iterable, Sequence
from typing import Any


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """Return a table for a terminal, one of rich's.

    Args:
        title: stands above it
        columns: the heads of the columns; the first one holds names, which may be folded,
            and all others numbers
        rows: the texts of each row
    """
    from rich.table import Table  # as late as a command's other imports

    table = Table(title=title)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def short(module: str) -> str:
    """Return a module's path in a model without what each of its network's has."""
    for network in ("encoder", "decoder"):  # their blocks are named after them
        module = module.replace(f"{network}.{network}s.", f"{network}s.")
    return module.replace("upstream.upstream.model.", "")  # of a front end
