"""Options of our classes: those of the ESPnet class behind them, and our own."""

import difflib
import inspect
from collections.abc import Iterable


def show_stock_options(ours: type, stock: type) -> None:
    """Let `asr_train --print_config` list ESPnet's options behind `**conf` too."""
    mine = inspect.signature(ours.__init__).parameters
    theirs = inspect.signature(stock.__init__).parameters
    keyword, rest = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
    added = [p.replace(kind=keyword) for n, p in theirs.items() if n not in mine]
    kept = [p for p in mine.values() if p.kind != rest]
    ours.__init__.__signature__ = inspect.Signature(kept + added)


def check_options(cls: type, given: Iterable[str], where: str) -> None:
    """Refuse an option that `cls` does not have, and name the nearest that it has.

    Raises:
        ValueError: an unknown option
    """
    known = [*inspect.signature(cls).parameters]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where}: unknown option {name!r}; {hint}")
