"""Our options in a training's configuration are turned into objects here."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from espnet2.train.class_choices import ClassChoices

from espnet_l0prune.core.constraints import CONSTRAINTS, AbsConstraint
from espnet_l0prune.core.goal import NETWORKS, Goal
from espnet_l0prune.core.phases import AbsSparsityScheduler
from espnet_l0prune.core.profile import Profile
from espnet_l0prune.core.schedules import SCHEDULERS
from espnet_l0prune.plugin.experiment import read_mapping
from espnet_l0prune.plugin.signature import check_options

sparsity_goal_choices = ClassChoices(
    "sparsity_goal",
    classes={"share": Goal},
    type_check=Goal,
    default=None,
    optional=True,
)
sparsity_scheduler_choices = ClassChoices(
    "sparsity_scheduler",
    classes=SCHEDULERS,
    type_check=AbsSparsityScheduler,
    default=None,
    optional=True,
)
sparsity_constraint_choices = ClassChoices(
    "sparsity_constraint",
    classes=CONSTRAINTS,
    type_check=AbsConstraint,
    default=None,
    optional=True,
)
CHOICES = (sparsity_goal_choices, sparsity_scheduler_choices, sparsity_constraint_choices)
# The values that replace null in a training that is pruned.
DEFAULTS = {"sparsity_goal": "share", "sparsity_constraint": "projected"}
PRUNING_OPTIONS = [f"{choice.name}{end}" for choice in CHOICES for end in ("", "_conf")]
# Versions up to 0.1.0 had these in `sparsity_scheduler_conf`, before there were profiles
GOAL_OPTIONS = [x.name for x in dataclasses.fields(Goal) if x.name != "profile"]


def is_pruned(args: argparse.Namespace) -> bool:
    """Return whether a configuration is that of a training with gates."""
    return getattr(args, "sparsity_scheduler", None) is not None


def inline_files(args: argparse.Namespace) -> None:
    """Replace the paths of structures and of a profile by the files' content, as ESPnet
    does for token_list.

    Raises:
        ValueError: a file that cannot be read
    """
    for name in (f"{network}_conf" for network in NETWORKS):
        conf = getattr(args, name, None) or {}
        path = conf.get("structure")
        if isinstance(path, str):
            expected = "the structure that `espnet-l0prune cut` wrote"
            conf["structure"] = read_mapping(path, f"{name}: structure", expected)
    if isinstance(path := _conf_of(args, "sparsity_goal").get("profile"), str):
        args.sparsity_goal_conf["profile"] = read_profile(path).plain()


def read_profile(path: str | Path) -> Profile:
    """Read what `espnet-l0prune profile` wrote.

    Raises:
        ValueError: a file that is missing, damaged, or something else
    """
    expected = "what `espnet-l0prune profile` wrote"
    data = read_mapping(path, "the profile", expected)
    return Profile.from_plain(data, f"the profile {path}")


def settle_options(args: argparse.Namespace) -> None:
    """Write defaults into a pruned training's configuration, or remove our options.

    They are removed without pruning, since a machine without the plugin would reject them
    even where they are null.
    """
    for name in ("model", "encoder"):  # which some tasks have from us alone
        if getattr(args, name, None) is None:
            vars(args).pop(name, None)
    if not is_pruned(args):
        for name in PRUNING_OPTIONS:
            vars(args).pop(name, None)
        return
    defaults = dict(DEFAULTS)
    if _conf_of(args, "sparsity_constraint"):  # today's default has no options
        defaults["sparsity_constraint"] = "lagrangian"  # the default up to 0.1.0
    for name, default in defaults.items():
        if getattr(args, name, None) is None:
            setattr(args, name, default)


def make_goal(args: argparse.Namespace) -> Goal:
    """Return the goal that `sparsity_goal_conf` sets, or the default without pruning.

    Versions up to 0.1.0 had its options in `sparsity_scheduler_conf`, which may still
    have them.

    Raises:
        ValueError: an unknown option, one in both places, or a value that makes no sense
    """
    if not is_pruned(args):
        return Goal()
    where, conf = "sparsity_goal_conf", {**_conf_of(args, "sparsity_goal")}
    for name, value in _conf_of(args, "sparsity_scheduler").items():
        if name in GOAL_OPTIONS:
            if name in conf:
                raise ValueError(
                    f"{name} is in sparsity_scheduler_conf and in {where}; expected it "
                    f"in {where} alone"
                )
            conf[name] = value
    if isinstance(path := conf.get("profile"), str):
        conf["profile"] = read_profile(path).plain()
    name = getattr(args, "sparsity_goal", None) or DEFAULTS["sparsity_goal"]
    return _made(sparsity_goal_choices, name, conf)


def make_scheduler(args: argparse.Namespace) -> AbsSparsityScheduler:
    """Return the schedule that `sparsity_scheduler` and its `_conf` ask for.

    Raises:
        ValueError: an unknown name or option, or a value that makes no sense
    """
    conf = _conf_of(args, "sparsity_scheduler")
    own = {name: value for name, value in conf.items() if name not in GOAL_OPTIONS}
    return _made(sparsity_scheduler_choices, args.sparsity_scheduler, own)


def make_constraint(args: argparse.Namespace) -> AbsConstraint:
    """Return the constraint that `sparsity_constraint` and its `_conf` ask for.

    Raises:
        ValueError: an unknown name or option, or a value that makes no sense
    """
    conf = _conf_of(args, "sparsity_constraint")
    return _made(sparsity_constraint_choices, args.sparsity_constraint, conf)


def _conf_of(args: argparse.Namespace, name: str) -> dict[str, Any]:
    return getattr(args, f"{name}_conf", None) or {}


def _made(choices: ClassChoices, name: object, conf: dict[str, Any]) -> Any:
    chosen = choices.get_class(str(name))
    check_options(chosen, conf, f"{choices.name}_conf")
    return chosen(**conf)
