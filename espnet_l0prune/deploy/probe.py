"""A probe says before any training what each part of a model is worth and what it costs.

Units are closed in the trained model, place by place, and what it predicts is compared
with what it predicts as a whole (the KL divergence, and the rise of the loss). Then the
units that do least harm for their cost are closed together, for a row of targets.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.candidates import (
    Candidate,
    Closing,
    candidates_of,
    closing,
    left_out,
    scores_of,
)
from espnet_l0prune.core.draws import same_draws
from espnet_l0prune.core.goal import NETWORKS
from espnet_l0prune.core.importance import FREE, Scores, per_cost
from espnet_l0prune.core.ranges import check
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.steps import Step, quiet
from espnet_l0prune.deploy.choice import Choice, pruning, units_of, without_run
from espnet_l0prune.deploy.configuration import modernize, parse
from espnet_l0prune.deploy.espnet3 import is_espnet3
from espnet_l0prune.deploy.source import load_dense, read_source
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.plugin.building import build_model, refuse_adapters, task_name
from espnet_l0prune.plugin.counting import make_budget
from espnet_l0prune.plugin.divergence import (
    ALL_HEADS,
    Harm,
    Utterance,
    harms_of,
    long_enough,
    without_error_rates_,
)
from espnet_l0prune.plugin.model import L0Distilled
from espnet_l0prune.plugin.models import our_name
from espnet_l0prune.plugin.options import make_goal
from espnet_l0prune.plugin.utterances import read_utterances

TARGETS = [tenth / 10 for tenth in range(1, 10)]
CHEAP = 0.1  # the rise of the loss, as a share of the loss, up to which a target is cheap


@dataclass(frozen=True)
class Closed:
    """A `Closed` says what closing some units saves, and what it does.

    Attributes:
        units: number of the units that are closed
        saved: the share of each cost in scope that a cut of them removes
        harm: what closing them does to the model
    """

    units: int
    saved: dict[str, float]
    harm: Harm

    @property
    def price(self) -> float:
        """Return the KL divergence by the share that is saved, a mean of all costs."""
        return self.harm.kl / max(sum(self.saved.values()) / len(self.saved), FREE)


@dataclass(frozen=True)
class Worth:
    """A `Worth` says what a part of the model is worth, and what it costs.

    Attributes:
        place: path of the module in the model
        kind: the kind of the units that can go; None for all units of a block
        size: number of these units
        whole: what closing them does, but for one where one has to stay
        half: what closing the weaker half of them does; None where there is none
    """

    place: str
    kind: str | None
    size: int
    whole: Closed
    half: Closed | None

    @property
    def price(self) -> float:
        """Return the lower price of the half and the whole."""
        return min(one.price for one in (self.whole, self.half) if one is not None)


@dataclass(frozen=True)
class Point:
    """A `Point` is a target in one cost, met by closing units, without any training.

    Attributes:
        target: the sparsity that was asked for
        closed: the units with the least harm for what they save of that cost
    """

    target: float
    closed: Closed


@dataclass(frozen=True)
class Probe:
    """A `Probe` is what was found out about a model before any training.

    Attributes:
        scope: what is pruned
        utterances: on how many of them the model was judged
        totals: the amount of each cost in scope; that of time in seconds
        reachable: the largest sparsity in each cost that any gates can reach
        loss: ESPnet's loss of the whole model
        worths: the worth of each place, the cheapest first
        curves: for each cost, the sparsities that were tried
    """

    scope: str
    utterances: int
    totals: dict[str, float]
    reachable: dict[str, float]
    loss: float
    worths: list[Worth]
    curves: dict[str, list[Point]]

    def plain(self) -> dict[str, Any]:
        """Return plain data that a file can hold."""
        return asdict(self)

    def cheap(self, cost: str) -> Point | None:
        """Return the last target in a cost up to which the loss has risen by a tenth at
        most, if there is any."""
        last = None
        for point in self.curves[cost]:
            if not point.closed.harm.loss - self.loss <= CHEAP * abs(self.loss):
                break
            last = point
        return last


def probe_experiment(
    source: Path,
    checkpoint: str | None,
    choice: Choice,
    utterances: int,
    data: Path | None = None,
    step: Step = quiet,
) -> Probe:
    """Judge a dense experiment, or a zip of the zoo, before it is pruned.

    Args:
        source: the experiment's folder, or the zip
        checkpoint: name of the checkpoint in the folder; None for its average
        choice: how it is to be pruned; no target is needed
        utterances: how many to judge it on
        data: folder with files of the same names as those of the training's data, to be
            read instead of these
        step: is called with the name of each step as it begins

    Raises:
        ValueError: a model that cannot be pruned, an experiment of ESPnet3, a number out
            of its range, data that are not here or too short, files that are missing,
            damaged or not safe
        ImportError: see `read_utterances`
    """
    check("command line", {"--utterances": utterances})
    with tempfile.TemporaryDirectory() as folder:
        read = read_source(source, checkpoint, Path(folder) / "dense", choice, step)
        model, args = gated(*read, choice, step)
        goal = make_goal(args)
        budget = make_budget(model, goal)
        if not budget.gates:
            raise ValueError(
                f"nothing in the {goal.scope} of {source} has such units; expected a "
                "network that can be pruned. Choose another --scope, or other --units."
            )
        step("reading utterances")
        with same_draws():  # preprocessors draw
            found = read_utterances(args, utterances, data)
    heard = long_enough(model, found)
    if not heard:
        raise ValueError(
            f"all {len(found)} utterances are too short for the model's front end; "
            "expected longer ones. Choose others by --data."
        )
    return probe(model, budget, goal.scope, heard, step)


def gated(
    config: dict, config_file: Path, model_file: Path, choice: Choice, step: Step = quiet
) -> tuple[L0Distilled, argparse.Namespace]:
    """Return the trained model with gates, all of them open, and its options.

    Args:
        config, config_file, model_file: what `read_source` has returned
        choice: how it is to be pruned
        step: is called with the name of each step as it begins

    Raises:
        ValueError: see `probe_experiment`
    """
    if is_espnet3(config):
        raise ValueError(
            f"{config_file} is of ESPnet3, whose data `probe` does not read; expected an "
            "experiment of ESPnet2"
        )
    args = argparse.Namespace(**config)
    model_name = our_name(task_name(args), config.get("model"))
    refuse_adapters(args)
    dense = modernize(without_run(config, choice))
    trained = load_dense(config, config_file, model_file, step)
    conf = pruning(dense, choice, units_of(trained, choice), ALL_HEADS)
    args = parse({**dense, "model": model_name, **conf})
    step("building it with gates")
    model = build_model(args)
    without_error_rates_(model)
    state = {**model.state_dict(), **trained.state_dict()}  # its gates are new
    model.load_state_dict(state)
    return model.eval(), args


def probe(
    model: L0Distilled,
    budget: Budget,
    scope: str,
    utterances: Sequence[Utterance],
    step: Step = quiet,
) -> Probe:
    """Judge a trained model whose gates are all open; it is left as it was.

    Args:
        model: with the options `ALL_HEADS`
        budget: counts it, and has gates
        scope: what it counts
        utterances: batches of one; see `long_enough`
        step: is called with the name of each step as it begins
    """
    candidates = candidates_of(budget)
    loss, worths = _worths(model, budget, candidates, utterances, step)
    kls = [(None if w.half is None else w.half.harm.kl, w.whole.harm.kl) for w in worths]
    scores = scores_of(budget, candidates, kls)
    return Probe(
        scope=scope,
        utterances=len(utterances),
        totals=budget.totals,
        reachable=budget.reachable(),
        loss=loss,
        worths=sorted(worths, key=lambda worth: worth.price),
        curves=_curves(model, budget, scores, utterances, step),
    )


def _worths(
    model: L0Distilled,
    budget: Budget,
    candidates: Sequence[Candidate],
    utterances: Sequence[Utterance],
    step: Step,
) -> tuple[float, list[Worth]]:
    """Return the loss of the whole model, and the worth of each candidate."""
    wholes = [candidate.whole for candidate in candidates]
    halves = [candidate.half for candidate in candidates if candidate.half is not None]
    step(f"closing {len(wholes)} parts and {len(halves)} halves, one after another")
    closings = [{}, *wholes, *halves]
    harms = harms_of(model, utterances, closings, step)
    opened, *found = _closed(budget, closings, harms)
    of_halves, paths = iter(found[len(wholes) :]), _paths(model)
    return opened.harm.loss, [
        Worth(
            place=paths[one.place],
            kind=one.kind,
            size=sum(site.sizes[kind] for site, kind in one.whole),
            whole=whole,
            half=None if one.half is None else next(of_halves),
        )
        for one, whole in zip(candidates, found, strict=False)
    ]


def _curves(
    model: L0Distilled,
    budget: Budget,
    scores: Scores,
    utterances: Sequence[Utterance],
    step: Step,
) -> dict[str, list[Point]]:
    """Return what closing units of low scores does, for some targets in each cost."""
    reachable = budget.reachable()
    curves: dict[str, list[Point]] = {cost: [] for cost in reachable}
    tried = [(c, t) for c in reachable for t in TARGETS if t <= reachable[c]]
    step(f"closing the cheapest units together, for {len(tried)} targets")
    closings = []
    for cost, target in tried:
        by_price = per_cost(budget, scores, {cost})
        closings.append(left_out(budget, select(budget, {cost: target}, scores=by_price)))
    harms = harms_of(model, utterances, closings, step)
    found = _closed(budget, closings, harms)
    for (cost, target), closed in zip(tried, found, strict=True):
        curves[cost].append(Point(target, closed))
    return curves


def _paths(model: nn.Module) -> dict[str, str]:
    """Return the path in the model of each site, by its path in its network."""
    return {
        site.name: f"{network}.{site.name}"
        for network in NETWORKS
        for site in find_sites(getattr(model, network, None))
    }


def _closed(
    budget: Budget, closings: Sequence[Closing], harms: Sequence[Harm]
) -> list[Closed]:
    """Return what each closing saves, with its harm."""
    found = []
    for units, harm in zip(closings, harms, strict=True):
        with closing(units):
            saved = budget.actual()
        found.append(Closed(sum(map(len, units.values())), saved, harm))
    return found
