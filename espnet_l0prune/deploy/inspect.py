"""An inspection says what is left of every module of a model, and what that costs."""

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from espnet_l0prune.core.costs import counted
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.goal import NETWORKS, Goal
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
from espnet_l0prune.plugin.network import ENCODERS
from espnet_l0prune.plugin.options import make_goal


@dataclass
class Row:
    """A `Row` is a module, with its units before pruning and now, and its costs now."""

    module: str
    units: dict[str, tuple[int, int]]  # numbers before and now, by kind
    amounts: dict[str, int]  # by cost
    shares: dict[str, float]  # of the whole model's, by cost


@dataclass
class Inspection:
    """An `Inspection` describes a model module by module.

    Sparsities are given by cost, as shares in [0, 1] of what is in the budget's scope.
    """

    rows: list[Row]
    seconds: float  # length of the audio for which MACs are counted
    tokens: int  # number of tokens that are emitted for it
    amounts: dict[str, dict[str, int]]  # by cost, then by network, or the model
    scope: str | None  # the budget's scope; None without gates
    expected_sparsity: dict[str, float]
    actual_sparsity: dict[str, float]
    reachable_sparsity: dict[str, float]

    @property
    def is_cut(self) -> bool:
        """Return whether units are gone, and not only closed."""
        units = [pair for row in self.rows for pair in row.units.values()]
        return self.scope is None and any(now < before for before, now in units)


def inspect_experiment(experiment: Path, checkpoint: str) -> Inspection:
    """Count units, parameters and MACs of a gated, a cut or a dense experiment.

    For a gated one, what a cut of its closed units would leave is counted.

    Raises:
        ValueError: files that are missing or damaged, or an encoder without sites
    """
    return inspect_model(*load_experiment(experiment, checkpoint))


def inspect_model(model: nn.Module, args: argparse.Namespace) -> Inspection:
    """Count what a cut of the closed units leaves, and make this cut.

    Args:
        model: the model, which is cut in place
        args: its configuration

    Raises:
        ValueError: an encoder without sites
    """
    if not sites_of(model):
        raise ValueError(
            f"the model has encoder: {args.encoder}; expected {', '.join(ENCODERS)}, or "
            "one of them without l0_ in front, or a decoder or front end to prune"
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
    for cost in counted():
        whole = round(sum(term.amounts[cost] for term in terms))
        amounts[cost] = {"model": whole}
        for part in NETWORKS:
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
    """Return the network before pruning, with random weights."""
    dense = copy.deepcopy(args)
    for name in (f"{network}_conf" for network in NETWORKS):
        conf = getattr(dense, name, None)
        if conf and "structure" in conf:
            setattr(dense, name, {**conf, "structure": None, "units": []})
    return build_model(dense)


def _rows(model: nn.Module, dense: nn.Module) -> dict[str, Row]:
    """Return an empty row for each site, and for each part of the model without sites."""
    places: dict[str, Row] = {}

    def add(path: str, units: dict[str, tuple[int, int]]) -> None:
        places[path] = Row(path, units, dict.fromkeys(counted(), 0), {})

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
            if f"{name}.0" not in units:  # blocks have rows themselves
                add(f"{part}.{name}", {})
            for path in inside:
                add(f"{part}.{path}", units.pop(path))
        for path in units:
            add(f"{part}.{path}", units[path])
    return places


def _longest(owner: str, places: dict[str, Row]) -> str:
    """Return the path of the most precise row to which a module belongs."""
    while owner not in places and "." in owner:
        owner = owner.rpartition(".")[0]
    return owner
