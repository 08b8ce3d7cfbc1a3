"""Options of our classes: those of the ESPnet class behind them, and our own."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any


def show_stock_options(cls: Any, ours: Any, stock: Any) -> None:
    """Let `asr_train --print_config` list ESPnet's options behind `**conf` too.

    Args:
        cls: whose signature to set
        ours: the class whose __init__ has our options
        stock: ESPnet's class
    """
    mine = inspect.signature(ours.__init__).parameters
    theirs = [*inspect.signature(stock.__init__).parameters.values()][1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [p for p in mine.values() if p.kind == keyword]
    names = {p.name for p in own}
    rest = [p for p in theirs if p.name not in names]
    cls.__signature__ = inspect.Signature(rest + own)


def check_options(
    cls: type, given: Iterable[str], where: str, more: Iterable[str] = ()
) -> None:
    """Refuse an option that `cls` does not have, and name the nearest that it has.

    Args:
        cls: whose options they are
        given: names
        where: their place in the configuration, for the message
        more: names that are known beside those of `cls`

    Raises:
        ValueError: an unknown option
    """
    known = [*inspect.signature(cls).parameters, *more]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where}: unknown option {name!r}; {hint}")
