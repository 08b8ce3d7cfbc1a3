"""What is left of every module of a model, and what it costs."""

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.plan import plan_of
from espnet_l0prune.core.terms import terms_of
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.counting import (
    call_shapes,
    make_budget,
    run,
    sites_of,
)
from espnet_l0prune.plugin.experiment import load_experiment
from espnet_l0prune.plugin.options import make_goal


@dataclass
class Row:
    """A module: its units before pruning and now, and its costs now."""

    module: str
    units: dict[str, tuple[int, int]]  # by kind: before, now
    amounts: dict[str, int]  # by cost
    shares: dict[str, float]  # of the whole model's


@dataclass
class Inspection:
    """A model, module by module; sparsities by cost, as shares in [0, 1] of what is in
    the budget's scope."""

    rows: list[Row]
    seconds: float  # of audio, for the MACs
    tokens: int  # emitted for it
    amounts: dict[str, dict[str, int]]  # by cost; of encoder, decoder and model, now
    scope: str | None  # of the budget, where there are gates
    expected_sparsity: dict[str, float]
    actual_sparsity: dict[str, float]
    reachable_sparsity: dict[str, float]


def inspect_experiment(experiment: Path, checkpoint: str) -> Inspection:
    """Count units, parameters and MACs of a gated, a cut or a dense experiment.

    Of a gated one, those that a cut of the open gates would leave.

    Raises:
        ValueError: files that are missing or damaged, or an encoder without sites
    """
    return inspect_model(*load_experiment(experiment, checkpoint))


def inspect_model(model: nn.Module, args: argparse.Namespace) -> Inspection:
    """Count what a cut of the open gates leaves, which is all that the model has then.

    Args:
        model: of the configuration `args`; its closed units are cut, in place

    Raises:
        ValueError: an encoder without sites
    """
    if not find_sites(model.encoder):
        raise ValueError(
            f"the model has encoder: {args.encoder}; expected conformer, transformer, "
            "branchformer or e_branchformer, or one of them with l0_ in front"
        )
    goal = make_goal(args)
    sparsities = _sparsities(model, goal)
    cut_(model, sites_of(model), plan_of(sites_of(model)))
    sites, shapes = sites_of(model), call_shapes(model, lambda: run(model, goal))
    terms = terms_of(model, sites, shapes)
    places = _rows(model, build_dense(args))
    for term in terms:
        row = places[_longest(term.owner, places)]
        for cost, amount in term.amounts.items():
            row.amounts[cost] += round(amount)
    amounts = {}
    for cost in COSTS:
        whole = round(sum(term.amounts[cost] for term in terms))
        amounts[cost] = {"model": whole}
        for part in ("encoder", "decoder"):
            own = [row for row in places.values() if row.module.split(".")[0] == part]
            amounts[cost][part] = sum(row.amounts[cost] for row in own)
        for row in places.values():
            row.shares[cost] = row.amounts[cost] / max(whole, 1)
    return Inspection(
        rows=[row for row in places.values() if row.amounts["params"] or row.units],
        seconds=goal.seconds,
        tokens=goal.tokens,
        amounts=amounts,
        **sparsities,
    )


@torch.no_grad()
def _sparsities(model: nn.Module, goal: Goal) -> dict:
    if not any(site.gates for site in sites_of(model)):
        names = "expected_sparsity", "actual_sparsity", "reachable_sparsity"
        return {"scope": None, **{name: {} for name in names}}
    budget = make_budget(model, goal)
    return {
        "scope": goal.scope,
        "expected_sparsity": {c: float(s) for c, s in budget.expected().items()},
        "actual_sparsity": budget.actual(),
        "reachable_sparsity": budget.reachable(),
    }


def build_dense(args: argparse.Namespace) -> nn.Module:
    """The network that was not pruned yet, with random weights."""
    dense = copy.deepcopy(args)
    for name in ("encoder_conf", "decoder_conf"):
        conf = getattr(dense, name, None)
        if conf and "structure" in conf:
            setattr(dense, name, {**conf, "structure": None, "units": []})
    return build_model(dense)


def _rows(model: nn.Module, dense: nn.Module) -> dict[str, Row]:
    """An empty row for each site, and for each part of the model that has none."""
    places: dict[str, Row] = {}

    def add(path: str, units: dict[str, tuple[int, int]]) -> None:
        places[path] = Row(path, units, dict.fromkeys(COSTS, 0), {})

    for part, child in dense.named_children():
        sites = {site.name: site.sizes for site in find_sites(child)}
        left = {site.name: site.sizes for site in find_sites(getattr(model, part))}
        if not sites:
            add(part, {})
            continue
        units = {
            name: {k: (n, left.get(name, {}).get(k, 0)) for k, n in sizes.items()}
            for name, sizes in sites.items()
        }
        for name, _ in child.named_children():
            inside = [path for path in units if path.split(".")[0] == name]
            if f"{name}.0" not in units:  # blocks have rows of their own
                add(f"{part}.{name}", {})
            for path in inside:
                add(f"{part}.{path}", units.pop(path))
        for path in units:
            add(f"{part}.{path}", units[path])
    return places


def _longest(owner: str, places: dict[str, Row]) -> str:
    """The most precise row that a module belongs to."""
    while owner not in places and "." in owner:
        owner = owner.rpartition(".")[0]
    return owner
