"""Our options in a training's configuration have a JSON schema, for editors.

Types and defaults come from the signatures, texts from the docstrings, and limits from
`RANGES`.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from docstring_parser.google import parse

from espnet_l0prune.core.constraints import CONSTRAINTS
from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.gates import GATES
from espnet_l0prune.core.goal import PARTS, SCOPES, Goal
from espnet_l0prune.core.optim import ORDERS, L0AdamW
from espnet_l0prune.core.phases import GATE_STARTS
from espnet_l0prune.core.ranges import RANGES, SHARE
from espnet_l0prune.core.schedules import SCHEDULERS
from espnet_l0prune.networks.units import UNITS, WORDS
from espnet_l0prune.plugin.decay import LinearDecayLR
from espnet_l0prune.plugin.model import CHOICES, L0Distilled
from espnet_l0prune.plugin.models import ALL_NAMES
from espnet_l0prune.plugin.network import DECODERS, ENCODERS, FRONTENDS, L0Network
from espnet_l0prune.plugin.upstream import UpstreamNetwork
from espnet_l0prune.plugin.whisper import WhisperNetwork

PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string"}


def schema() -> dict:
    """Return the schema of all options that this package adds; others are accepted."""
    network, model = options(L0Network), options(L0Distilled)
    network["gate"]["enum"] = [*GATES]
    kinds = {"type": "array", "items": {"enum": [*UNITS]}}
    network["units"]["anyOf"] = [{"enum": [*WORDS]}, kinds]
    network["structure"]["anyOf"].append({"type": "string"})  # or the path of a file
    for name, choices in CHOICES.items():
        model[name]["enum"] = [*choices]
    goal, schedule = options(Goal), shared(SCHEDULERS.values())
    share = {"type": "number", **SHARE.schema()}
    goal["target"]["anyOf"] = [share, closed(dict.fromkeys(COSTS, share))]
    goal["profile"]["anyOf"].append({"type": "string"})  # or the path of a file
    schedule["gate_start"]["enum"] = [*GATE_STARTS, None]
    goal["scope"]["enum"] = [*SCOPES]
    goal["per"]["enum"] = [*PARTS]
    constraint, optim = shared(CONSTRAINTS.values()), options(L0AdamW)
    optim["order"]["enum"] = [*ORDERS]
    decay = options(LinearDecayLR)
    frontend = network | options(UpstreamNetwork)
    network |= options(WhisperNetwork)
    ranged = {
        "frontend_conf": frontend,
        "encoder_conf": network,
        "model_conf": model,
        "optim_conf": optim,
        "scheduler_conf": decay,
        "sparsity_goal_conf": goal,
        "sparsity_scheduler_conf": schedule,
        "sparsity_constraint_conf": constraint,
    }
    for part, properties in ranged.items():
        for name, limits in RANGES[part].items():
            if name in properties and name != "target":  # whose schema has the limits
                properties[name] |= limits.schema()
    # versions up to 0.1.0 had the goal's options in the schedule
    before = {name: {**option, "deprecated": True} for name, option in goal.items()}
    decoder = network | {"random_features": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ESPnet's training configuration with espnet_l0prune",
        "type": "object",
        "properties": {
            "frontend": ours_or_stock(FRONTENDS),
            "frontend_conf": {
                "type": "object",
                "properties": frontend | {"random_features": False},
            },
            "encoder": ours_or_stock(ENCODERS),
            "encoder_conf": {"type": "object", "properties": network},
            "decoder": ours_or_stock(DECODERS),
            "decoder_conf": {"type": "object", "properties": decoder},
            "model": ours_or_stock(ALL_NAMES),
            "model_conf": {"type": "object", "properties": model},
            "optim": ours_or_stock(["l0_adamw"]),
            "optim_conf": {"type": "object", "properties": optim},
            "scheduler": ours_or_stock(["l0_lineardecaylr"]),
            "scheduler_conf": {"type": "object", "properties": decay},
            "sparsity_goal": {"enum": ["share", None]},
            "sparsity_goal_conf": closed(goal),
            "sparsity_scheduler": {"enum": [*SCHEDULERS, None]},
            "sparsity_scheduler_conf": closed(schedule | before),
            "sparsity_constraint": {"enum": [*CONSTRAINTS, None]},
            "sparsity_constraint_conf": closed(constraint),
        },
    }


def ours_or_stock(names: Iterable[str]) -> dict:
    """Return the schema of a name of ours, or of one without our prefix, `l0_`."""
    other = {"not": {"type": "string", "pattern": "^l0_"}}
    return {"anyOf": [{"enum": [*names]}, other]}


def shared(classes: Iterable[type]) -> dict[str, dict]:
    """Return the options of classes of which one is chosen, without what differs."""
    options_of: dict[str, dict] = {}
    for each in classes:
        for name, option in options(each).items():
            known = options_of.setdefault(name, option)
            options_of[name] = {k: v for k, v in known.items() if option.get(k) == v}
    return options_of


def closed(properties: Mapping[str, dict]) -> dict:
    """Return the schema of a mapping that has no options but these."""
    return {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
    }


def options(cls: Any) -> dict[str, dict]:
    """Return a class's own options by name, each with type, default and text.

    A class that is mixed with one of ESPnet's has its own options keyword-only.
    """
    own_options, texts = {}, docstring_of(cls)
    hints = typing.get_type_hints(cls.__init__)
    own = [
        p for p in inspect.signature(cls.__init__).parameters.values() if p.name in hints
    ]
    mixed = [p for p in own if p.kind == p.KEYWORD_ONLY]
    for parameter in mixed or own:
        name = parameter.name
        if parameter.kind == parameter.VAR_KEYWORD or name in ("params", "optimizer"):
            continue
        own_options[name] = type_of(hints[name])
        if parameter.default is not parameter.empty:
            own_options[name]["default"] = parameter.default
        if name in texts:
            own_options[name]["description"] = texts[name]
    return own_options


def type_of(hint: object) -> dict:
    """Return a type hint as JSON schema; an unknown hint accepts anything."""
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if hint is type(None):
        return {"type": "null"}
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [type_of(part) for part in inside]}
    if origin is not None and issubclass(origin, collections.abc.Mapping):
        values = type_of(inside[1]) if inside else {}
        return {"type": "object", "additionalProperties": values}
    if origin is tuple or (
        origin is not None and issubclass(origin, collections.abc.Iterable)
    ):
        return {"type": "array", "items": type_of(inside[0]) if inside else {}}
    return {}


def docstring_of(cls: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each argument."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for argument in parse(base.__doc__ or "").params:
            text = " ".join((argument.description or "").split())
            texts |= dict.fromkeys(argument.arg_name.split(", "), text)
    return texts
