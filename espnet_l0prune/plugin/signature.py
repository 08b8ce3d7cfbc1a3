"""Options of our classes are checked against signatures, ESPnet's and our own."""

import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import typeguard

from espnet_l0prune.core.ranges import RANGES


def show_stock_options(cls: Any, ours: Any, stock: Any) -> None:
    """Let `asr_train --print_config` also list the options of ESPnet behind `**conf`.

    Args:
        cls: the class whose signature is set
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


def show_more_options(cls: Any, ours: Any) -> None:
    """Let a class's signature have the options of another class of ours, too.

    Args:
        cls: the class whose signature is set
        ours: the class whose __init__ has the options, keyword-only
    """
    shown, own = inspect.signature(cls), inspect.signature(ours.__init__)
    more = [
        parameter
        for name, parameter in own.parameters.items()
        if parameter.kind == parameter.KEYWORD_ONLY and name not in shown.parameters
    ]
    known = shown.parameters.values()
    cls.__signature__ = shown.replace(parameters=[*known, *more])


def check_options(
    cls: Any, given: Mapping[str, object], where: str, more: Iterable[str] = ()
) -> None:
    """Refuse options that a class does not have, and values of a wrong type.

    The message names the nearest known option. Numbers with a range are left to the
    class.

    Args:
        cls: the class that has the options
        given: the options by name
        where: their part of the configuration, for the message
        more: known names in addition to those of `cls`

    Raises:
        ValueError: an unknown option, or a value of a wrong type
    """
    known = [*inspect.signature(cls).parameters, *more]
    hints = _hints(cls)
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            every = ", ".join(known) or "none"
            hint = f"did you mean {near[0]!r}?" if near else f"known: {every}"
            raise ValueError(f"{where}: unknown option {name!r}; {hint}")
        if name in hints and name not in RANGES.get(where, {}):
            _check_type(value, hints[name], f"{where}: {name}")


def _hints(cls: Any) -> dict[str, Any]:
    """Return the types of a class's options, and of those that its bases add.

    A class that is mixed with one of ESPnet's has its own options keyword-only.
    """
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        init = vars(base).get("__init__")
        if init and any(
            parameter.kind == parameter.KEYWORD_ONLY
            for parameter in inspect.signature(init).parameters.values()
        ):
            hints |= typing.get_type_hints(init)
    return hints | typing.get_type_hints(cls.__init__)


def _check_type(value: object, hint: Any, name: str) -> None:
    # ESPnet takes typeguard 2 as well, which wants a name before the value, raises a
    # TypeError, and takes any value for a union that is written with a bar.
    check: Any = typeguard.check_type
    error = getattr(typeguard, "TypeCheckError", TypeError)
    before = [name] if error is TypeError else []
    bars = isinstance(hint, types.UnionType)
    checked = typing.Union[typing.get_args(hint)] if bars else hint  # noqa: UP007
    try:
        check(*before, value, checked)
    except error as e:
        kind = hint.__name__ if isinstance(hint, type) else str(hint)
        kind = re.sub(r"(collections\.abc|typing)\.", "", kind)
        raise ValueError(f"{name} is {value!r}; expected a value of type {kind}") from e
