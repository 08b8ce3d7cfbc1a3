"""Here it is chosen how to prune and fine-tune a model of a given configuration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from espnet_l0prune.core.goal import NETWORKS
from espnet_l0prune.deploy.cut import STRUCTURE_FILES
from espnet_l0prune.deploy.rates import conf_of, fine_tuning_rate, number_of, pruning_rate
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.plugin.network import NETWORK_KINDS, UNNAMED
from espnet_l0prune.plugin.options import read_profile
from espnet_l0prune.plugin.resume import RUN

DATA = tuple(
    f"{part}_{what}"
    for part in ("train", "valid")
    for what in ("data_path_and_name_and_type", "shape_file")
)
# Names of networks of which only our kinds can be built where the published model is not
PUBLISHED = ("whisper", "s3prl", "espnet_ssl")
# ESPnet's encoders that are self-supervised models
SELF_SUPERVISED = (
    *("wav2vec2", "hubert", "hubert_pretrain", "torchaudiohubert"),
    *("avhubert", "avhubert_pretrain", "beats"),
)
HELD = "freeze_encoder_steps"  # for which a front end of ESPnet's own does not train
# Lists that ESPnet's command line adds to, where it replaces other options: one who names
# the data there would have each entry twice.
APPENDED = (*DATA, "fold_length")


@dataclass
class Choice:
    """A `Choice` says how an experiment is to be pruned.

    Args:
        target: sparsity to reach by cost, in (0, 1)
        scope: `encoder`, or `model` to include the decoder, and a self-supervised model
            as front end; or `frontend` or `decoder` alone
        units: kinds of units, as in `encoder_conf`
        epochs: number of epochs of the pruning and of the fine-tuning; None for a third
            of the dense training's, but at least 6 and 4; and for an eighth of that more
            for each milestone
        profile: path of what `espnet-l0prune profile` wrote; a target in `time` needs it
        data: whether the configurations also name the training data
        settings: further options of the pruning, in a configuration's form, which replace
            those that are chosen for it
        finetune_settings: further options of the fine-tuning, in the same form
        milestones: rising sparsities on the way to the target, or to the largest of
            several, at each of which a network is written, too
    """

    target: Mapping[str, float] = field(default_factory=lambda: {"params": 0.5})
    scope: str = "encoder"
    units: str | list[str] = "default"
    epochs: tuple[int | None, int | None] = (None, None)
    profile: Path | None = None
    data: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    finetune_settings: Mapping[str, Any] = field(default_factory=dict)
    milestones: Sequence[float] = ()


def without_run(dense: dict, choice: Choice) -> dict:
    """Return the options that both trainings take over from the dense one."""
    dropped = RUN if choice.data else (*RUN, *APPENDED)
    return {k: v for k, v in dense.items() if k not in dropped}


def units_of(model: nn.Module, choice: Choice) -> dict[str, str | list[str]]:
    """Return the kinds of units for each network.

    Each gets the kinds that it has. Kinds that none has go to the encoder, which refuses
    them by name.
    """
    units = choice.units
    if choice.scope != "model" or isinstance(units, str):
        return dict.fromkeys(NETWORKS, units)
    has = {
        part: {
            kind for site in find_sites(getattr(model, part, None)) for kind in site.kinds
        }
        for part in NETWORKS
    }
    others = set().union(*(has[part] for part in NETWORKS if part != "encoder"))
    alone = others - has["encoder"]
    mine: dict[str, str | list[str]] = {
        part: [kind for kind in units if kind in has[part]] for part in NETWORKS
    }
    return mine | {"encoder": [kind for kind in units if kind not in alone]}


def pruning(dense: dict, choice: Choice, units: dict, files: Mapping[str, Any]) -> dict:
    """Return the options in which the pruning differs from the dense training.

    Args:
        dense: the options of the dense training
        choice: how to prune
        units: the kinds of units, as `units_of` returns them
        files: the model's options that name its teacher
    """
    parts = 24 + 3 * len(choice.milestones)  # of equal length
    usual = max(_epochs(dense) // 3, 6)
    epochs = choice.epochs[0] or math.ceil(usual * parts / 24)
    milestones = {}
    if choice.milestones:
        final = max(choice.target.values())
        milestones = {"milestones": [*choice.milestones, final]}
    gated = {part: {"units": kinds} for part, kinds in units.items()}
    return {
        "max_epoch": epochs,
        "keep_nbest_models": 1,
        "best_model_criterion": [["valid", "loss_on_budget", "min"]],
        **_networks(dense, choice, gated),
        "model_conf": {**conf_of(dense, "model"), **files},
        **pruning_rate(dense),
        "sparsity_goal_conf": _goal(choice),
        "sparsity_scheduler": "linear",
        "sparsity_scheduler_conf": {
            "in_epochs": True,
            "warmup_steps": epochs / parts,
            "ramp_steps": 15 * epochs / parts,
            "hold_steps": 3 * epochs / parts,
            **milestones,
        },
        "sparsity_constraint": "projected",
        "sparsity_constraint_conf": {},
    }


def _goal(choice: Choice) -> dict:
    goal: dict[str, Any] = {"target": dict(choice.target), "scope": choice.scope}
    if choice.profile is not None:
        goal["profile"] = str(choice.profile)
        goal["seconds"] = read_profile(choice.profile).seconds
    return goal


def fine_tuning(dense: dict, choice: Choice, files: dict[str, str], cut: Path) -> dict:
    """Return the options in which the fine-tuning differs from the dense training.

    Args:
        dense: the options of the dense training
        choice: how to prune
        files: the model's options that name its teacher
        cut: the folder that the cut will write
    """
    cut_down = {
        name: {"units": [], "structure": str(cut / file)}
        for name, file in STRUCTURE_FILES.items()
    }
    return {
        "max_epoch": choice.epochs[1] or max(_epochs(dense) // 3, 4),
        **_networks(dense, choice, cut_down),
        "model_conf": {**conf_of(dense, "model"), **files},
        **fine_tuning_rate(dense, choice.finetune_settings.get("scheduler")),
    }


def with_settings(conf: Mapping, settings: Mapping) -> dict:
    """Return a configuration with some options replaced; mappings are merged."""
    new = dict(conf)
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and isinstance(new.get(name), Mapping)
        new[name] = with_settings(new[name], value) if nested else value
    return new


def _networks(dense: dict, choice: Choice, more: Mapping[str, dict]) -> dict:
    """Return the networks in scope as our classes, with more options."""
    options: dict[str, Any] = {}
    for part, known in NETWORK_KINDS.items():
        stock = str(dense.get(part, UNNAMED.get(part)))
        name = stock if stock in known else f"l0_{stock}"
        within = choice.scope in (part, "model")
        if choice.scope == "model" and part != "encoder":
            within = name in known  # others are left whole
        if not within and stock not in PUBLISHED:
            continue
        conf = more[part] if within else {"units": []}
        if name not in known:
            able = ", ".join(name.removeprefix("l0_") for name in known)
            remedy = "Choose another --scope or another experiment."
            if part == "encoder" and stock in SELF_SUPERVISED:
                fronts = " or ".join(
                    x.removeprefix("l0_") for x in NETWORK_KINDS["frontend"]
                )
                remedy = (
                    "HuBERT, wav2vec 2.0, WavLM and XEUS can be pruned as front ends: "
                    f"train a recognizer with frontend: {fronts}, or choose another "
                    "experiment."
                )
            raise ValueError(
                f"the experiment has {part}: {stock}; only {able} can be pruned. {remedy}"
            )
        options[part] = name
        options[f"{part}_conf"] = {**conf_of(dense, part), **conf}
        if part != "frontend" or not within:
            continue
        if conf_of(dense, part).get("layer", -1) != -1:
            options["unused_parameters"] = True  # of the blocks after that layer
        if HELD in conf_of(dense, part):  # gates have to move
            options["frontend_conf"][HELD] = 0
    return options


def _epochs(dense: dict) -> int:
    return int(number_of(dense, "max_epoch") or 40)  # ESPnet's default
