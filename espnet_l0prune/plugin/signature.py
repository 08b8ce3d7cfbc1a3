"""Options of our classes: those of the ESPnet class behind them, and our own."""

import difflib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from typeguard import TypeCheckError, check_type

from espnet_l0prune.core.ranges import RANGES


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
    cls: Any, given: Mapping[str, object], where: str, more: Iterable[str] = ()
) -> None:
    """Refuse an option that `cls` does not have, and name the nearest that it has; or a
    value of another type than it takes. Numbers that have a range are left to `cls`.

    Args:
        cls: whose options they are
        given: the options by name
        where: their place in the configuration, for the message
        more: names that are known beside those of `cls`

    Raises:
        ValueError: an unknown option, or a value of a wrong type
    """
    known = [*inspect.signature(cls).parameters, *more]
    hints = typing.get_type_hints(cls.__init__)
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where}: unknown option {name!r}; {hint}")
        if name in hints and name not in RANGES.get(where, {}):
            _check_type(value, hints[name], f"{where}: {name}")


def _check_type(value: object, hint: Any, name: str) -> None:
    try:
        check_type(value, hint)
    except TypeCheckError as e:
        kind = hint.__name__ if isinstance(hint, type) else str(hint)
        kind = re.sub(r"(collections\.abc|typing)\.", "", kind)
        raise ValueError(f"{name} is {value!r}; expected a value of type {kind}") from e
