"""A cut removes the closed units of a gated experiment, and verifies the result."""

import argparse
import copy
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from torch import nn

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.costs import TIME
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.files import check_folder, new_folder, save
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.goal import NETWORKS, Goal
from espnet_l0prune.core.plan import Plan, plan_of
from espnet_l0prune.core.ranges import check
from espnet_l0prune.core.reading import read_json
from espnet_l0prune.core.steps import Step, how_long, quiet
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.reconstruct import Reconstruction, Reconstructor
from espnet_l0prune.deploy.verify import (
    Difference,
    difference_of,
    outputs,
    require_equal,
    tolerance_of,
)
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.counting import make_budget, make_parts, sites_of
from espnet_l0prune.plugin.experiment import last_of, load_experiment
from espnet_l0prune.plugin.network import L0Network
from espnet_l0prune.plugin.options import PRUNING_OPTIONS, is_pruned, make_goal
from espnet_l0prune.plugin.weight_names import portable

BUDGET_TOLERANCE = 0.005  # how far the real sparsity may be from its target
# Options that a cut experiment's configuration loses, since it is not pruned further.
GONE = (*PRUNING_OPTIONS, "init_param", "config")
STRUCTURE_FILES = {
    "frontend": "frontend_structure.yaml",
    "encoder": "structure.yaml",
    "decoder": "decoder_structure.yaml",
}
CONFIG, MODEL, PLAN, REPORT = "config.yaml", "model.pth", "plan.json", "cut.json"
FILES = (CONFIG, MODEL, PLAN, REPORT, *STRUCTURE_FILES.values())


@dataclass
class CutReport:
    """A `CutReport` says what a cut did; it is written as cut.json."""

    scope: str
    target: dict[str, float]
    sparsity: dict[str, float]  # the share of the scope's costs that was removed
    encoder_parameters: tuple[int, int]  # before, after
    model_parameters: tuple[int, int]
    difference: Difference
    reconstruction: Reconstruction | None = None
    # seconds of the encoder before and after, as the profile promises, if there is one
    promised_time: tuple[float, float] | None = None


def check_gated(model: nn.Module, args: argparse.Namespace, experiment: Path) -> None:
    """Raise ValueError for an experiment that has no trained gates to cut by."""
    sites = [site for site in sites_of(model) if site.gates]
    if not sites or not is_pruned(args):
        raise ValueError(
            f"{experiment} has no gates that were trained (encoder: {args.encoder}, "
            f"units: {args.encoder_conf.get('units', 'default')}); expected an "
            "experiment with encoder: l0_conformer, say, some units and a "
            "sparsity_scheduler"
        )


def check_settled(model: nn.Module, goal: Goal, budget: Budget, experiment: Path) -> None:
    """Raise ValueError for gates that still move, or that miss their goal.

    Args:
        model: the gated model
        goal: what the gates should reach
        budget: the model's budget for this goal
        experiment: the model's folder, for the message
    """
    parts, targets = make_parts(model, goal, budget), goal.targets
    actual = {name: part.actual() for name, part in parts.items()}
    shown = ", ".join(
        f"{cost}{name and ' of '}{name}: actual {actual[name][cost]:.4f}, target {target}"
        for name in parts
        for cost, target in targets.items()
    )
    if not all(gate.is_decided() for gate in budget.gates.values()):
        raise ValueError(
            f"the gates of {experiment} are not frozen yet ({shown}). Train on until "
            "the phase is 'frozen' (raise max_epoch), or shorten warmup_steps, "
            "ramp_steps and hold_steps."
        )
    for name, part in parts.items():
        excess = min(actual[name][cost] - target for cost, target in targets.items())
        most = BUDGET_TOLERANCE + largest_step(part, targets)
        if not -BUDGET_TOLERANCE <= excess <= most:
            raise ValueError(
                f"{experiment} misses its budget ({shown}; tolerance {BUDGET_TOLERANCE}, "
                "and what the largest unit takes). Choose the checkpoint of a run that "
                "ended with this goal, or say with --plan what is to stay."
            )


def largest_step(budget: Budget, costs: Iterable[str]) -> float:
    """Return the largest share of a cost that one more step of selection would change.

    A step closes one more open unit or opens a closed one, together with the units that
    go with it.

    Args:
        budget: counts the network
        costs: the costs that are considered
    """
    largest = 0.0
    opened = budget.opened()
    before = budget.sparsity(opened)
    together: dict[tuple, list[tuple[int, HardConcrete]]] = {}
    for row, (units, gate) in enumerate(budget.gates.items()):
        key = (units.kind, len(gate.log_alpha)) if gate.uniform else (row,)
        together.setdefault(key, []).append((row, gate))
    for members in together.values():
        for value in (0, 1):
            changed = opened.clone()
            for row, gate in members:
                others = (opened[row, : len(gate.log_alpha)] != value).nonzero()
                changed[row, others.flatten()[: gate.round_to]] = value
            after = budget.sparsity(changed)
            steps = (abs(float(after[cost] - before[cost])) for cost in costs)
            largest = max(largest, *steps)
    return largest


def freeze_as_planned_(model: nn.Module, file: Path) -> None:
    """Fix the gates of a model as a plan in a file says.

    Raises:
        ValueError: a file that does not hold a plan, or that of another network
    """
    try:
        decide_(sites_of(model), Plan(read_json(file)))
    except ValueError as e:
        raise ValueError(
            f"{file} cannot be the plan: {e}. Expected the {PLAN} of a cut of the same "
            "network."
        ) from e


def cut_config(config: dict, model: nn.Module) -> dict:
    """Return the configuration of a cut model, for inference and for fine-tuning."""
    new = {k: v for k, v in config.items() if k not in GONE}
    for name in NETWORKS:
        network = getattr(model, name)
        if isinstance(network, L0Network):
            change = {"units": [], "structure": network.structure()}
            conf = {**config[f"{name}_conf"], **change, **network.portable_conf()}
            new[f"{name}_conf"] = conf
    new["optim"], new["optim_conf"] = "adamw", {}
    return new


def cut_experiment(
    experiment: Path,
    out: Path,
    checkpoint: str | None = None,
    plan_file: Path | None = None,
    force: bool = False,
    reconstruct: int | None = None,
    step: Step = quiet,
) -> CutReport:
    """Write the cut network of a gated experiment to a new folder.

    The folder gets config.yaml, model.pth, structure.yaml (and decoder_structure.yaml for
    a pruned decoder, frontend_structure.yaml for a pruned front end), plan.json and
    cut.json: all of them or none.

    Args:
        experiment: the experiment's folder
        out: the folder to write
        checkpoint: the name of the checkpoint to cut; None for the last one
        plan_file: plan.json of another cut, which says which units stay whatever the
            gates are; None for those that the gates have settled on
        force: whether to replace an earlier cut
        reconstruct: the number of utterances of the training data on which the cut model
            is fitted to its teacher, by `Reconstructor`; None to leave it as it is
        step: is called with the name of each step as it begins

    Raises:
        ValueError: see `check_gated` and `check_settled`; a plan of another network, or a
            file that holds none; masked and cut outputs that differ; an `out` that exists
            without `force`, or that is not an earlier cut; files that are missing or
            damaged; see `Reconstructor`
        OSError: `out` cannot be written
    """
    _check_free(out, force)
    if reconstruct is not None:
        check("command line", {"--reconstruct": reconstruct})
    checkpoint = checkpoint or last_of(experiment)
    step(f"loading {experiment}: {how_long(experiment / checkpoint)}")
    model, args = load_experiment(experiment, checkpoint)
    config = vars(args)
    check_gated(model, args, experiment)
    goal = make_goal(args)
    budget = make_budget(model, goal)
    if plan_file is not None:
        freeze_as_planned_(model, plan_file)
    else:
        check_settled(model, goal, budget, experiment)
    report = {
        "scope": goal.scope,
        "target": goal.targets,
        "sparsity": budget.actual(),
    }
    if TIME in budget.totals:
        report["promised_time"] = budget.totals[TIME], budget.remaining(TIME)
    before = count_parameters(model.encoder), count_parameters(model)
    promised, plan = before[1], plan_of(sites_of(model))
    promised -= round(budget.totals["params"] - budget.remaining())
    fitting = (
        Reconstructor(model, args, plan, reconstruct) if reconstruct is not None else None
    )
    step("computing what it says, with its closed units masked")
    masked, tolerance = outputs(model), tolerance_of(sites_of(model))
    step("cutting them out, and building what is left")
    cut_(model, sites_of(model), plan)

    # A user will load the model from its configuration, so that this is what is verified.
    config = cut_config(config, model)
    small = build_model(argparse.Namespace(**copy.deepcopy(config)))
    small.load_state_dict(model.state_dict())
    del model, budget
    step("computing what that says, and comparing")
    difference = difference_of(masked, outputs(small.eval()))
    require_equal(difference, tolerance)
    after = count_parameters(small.encoder), count_parameters(small)
    if after[1] != promised:
        raise ValueError(
            f"the cut model has {after[1]} parameters, its gates promised {promised}; "
            "nothing was written. This is a bug in a site's claims: please report it "
            "with the experiment's config.yaml"
        )
    result = CutReport(
        **report,
        encoder_parameters=(before[0], after[0]),
        model_parameters=(before[1], after[1]),
        difference=difference,
        reconstruction=fitting.fit_(small, step) if fitting is not None else None,
    )
    step(f"writing {out}")
    _write(out, small, config, plan, result, force)
    return result


def _check_free(out: Path, force: bool) -> None:
    """Raise ValueError unless `out` is new, or a cut that --force may replace."""
    check_folder(out, force, "cut", REPORT, FILES)


def _write(out: Path, model, config: dict, plan: Plan, report: CutReport, force) -> None:
    """Fill a folder beside `out`, which then takes its place."""
    out = out.resolve()  # a link to a folder is kept
    with new_folder(out, lambda: _check_free(out, force)) as part:
        save(portable(model), part / MODEL)
        texts = {CONFIG: config}
        for name, file in STRUCTURE_FILES.items():
            structure = config.get(f"{name}_conf", {}).get("structure")
            if structure:
                texts[file] = structure
        for name, data in texts.items():
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
            (part / name).write_text(text, "utf-8")
        (part / PLAN).write_text(json.dumps(plan.plain()), "utf-8")
        (part / REPORT).write_text(json.dumps(asdict(report), indent=1), "utf-8")
    logging.info(f"Cut model: {out}")
