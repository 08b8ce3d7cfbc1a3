"""Importances say how much each unit matters to a model that was trained dense.

Each function scores every unit of every gate, in the order of the budget's gates;
`select` closes the units with the lowest scores first. Scores that estimate how much the
loss rises should be divided by what a unit costs (`per_cost`). Norms of weights estimate
no loss; they are divided by their mean over all units of the kind.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.claims import Claim
from espnet_l0prune.core.gates import DECIDED, HardConcrete
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.sites import Units

Batches = Sequence[Mapping[str, Tensor]]  # keyword arguments of ESPnet's model
FREE = 1e-6  # of the dearest unit's price, at least, which a unit is taken to have
Scores = list[Tensor]  # (units,) for each gate


def random(budget: Budget) -> Scores:
    """Score units at random, from torch's global random state."""
    return [torch.rand(gate.log_alpha.numel()) for gate in budget.gates.values()]


def magnitude(budget: Budget, p: int = 2) -> Scores:
    """Score a unit by the p-norm of its weights, as one-shot magnitude pruning does.

    Raises:
        ValueError: units that are whole modules or blocks
    """
    sums = _over_groups(budget, lambda claim, w: w.abs().pow(p), whole=False)
    norms = [total.pow(1 / p) for total in _owned(budget, sums)]
    of_kind: dict[str, list[Tensor]] = {}
    for (_, kind), norm in zip(budget.gates, norms, strict=True):
        of_kind.setdefault(kind, []).append(norm)
    means = {kind: torch.cat(some).mean() for kind, some in of_kind.items()}
    return [n / means[kind] for (_, kind), n in zip(budget.gates, norms, strict=True)]


def evenly(scores: Scores) -> Scores:
    """Replace scores by each unit's rank in its module, in (0, 1).

    All modules then keep the same share of their units.
    """
    return [(s.argsort().argsort() + 0.5) / len(s) for s in scores]


def depth(budget: Budget) -> Scores:
    """Score a block by its place, so that the last blocks go first.

    Raises:
        ValueError: units that are not blocks
    """
    kinds = {kind for _, kind in budget.gates}
    if kinds != {"blocks"}:
        raise ValueError(f"units are {', '.join(sorted(kinds))}; expected blocks alone")
    gates = enumerate(budget.gates.values())
    return [torch.full_like(gate.log_alpha.detach(), -i) for i, gate in gates]


def taylor(budget: Budget, model: nn.Module, batches: Batches) -> Scores:
    """Score a unit by how the loss depends on its gate to the first order, (dL/dz)^2 at z
    = 1, the mean over batches (Molchanov et al. 2019, arXiv 1906.10771).

    dL/dz is the sum of w dL/dw over the weights that the gate multiplies.

    Raises:
        ValueError: units that are blocks
    """

    def slopes(claim: Claim, w: Tensor) -> Tensor:
        return w * w.grad if claim.folds and w.grad is not None else torch.zeros_like(w)

    squares = [
        [slope.square() for slope in _owned(budget, _over_groups(budget, slopes))]
        for _ in _gradients(model, batches)
    ]
    return [torch.stack(same).mean(0) for same in zip(*squares, strict=True)]


def fisher(budget: Budget, model: nn.Module, batches: Batches) -> Scores:
    """Score a unit by how much the loss rises without it to the second order, 1/2 sum h
    w^2 over all weights that it owns in coupled layers (the idea of CPD, arXiv
    2408.03046).

    h stands for the diagonal of the Hessian: the mean of (dL/dw)^2 over batches, where L
    is a batch's mean loss. Over single utterances it would be the empirical Fisher
    matrix's.

    Raises:
        ValueError: units that are whole modules or blocks
    """
    h = {w: torch.zeros_like(w) for w in model.parameters()}
    for _ in _gradients(model, batches):
        for w, total in h.items():
            if w.grad is not None:
                total += w.grad.square() / len(batches)
    gains = _over_groups(budget, lambda claim, w: h[w] * w.square() / 2, whole=False)
    return _owned(budget, gains)


def removal(
    budget: Budget,
    harm: Callable[[], float],
    kinds: Collection[str] | None = None,
    groups: int = 8,
) -> Scores:
    """Score a unit by its share of the harm that closing its group of units does.

    The units of a gate are grouped by their norm, so that a module has up to `groups`
    groups, from weak to strong (see `weakest_first`).

    Args:
        budget: counts the network
        harm: measures how bad the model is in its present state
        kinds: the kinds of units to close, by default all; units of other kinds have
            infinite scores
        groups: largest number of groups of a gate
    """
    before, scores, orders = harm(), [], weakest_first(budget)
    for ((_, kind), gate), order in zip(budget.gates.items(), orders, strict=True):
        score = torch.full_like(gate.log_alpha.detach(), torch.inf)
        if kinds is None or kind in kinds:
            for units in order.tensor_split(min(groups, len(order))):
                with closed(gate, units):
                    score[units] = (harm() - before) / len(units)
        scores.append(score)
    return scores


def weakest_first(budget: Budget) -> list[Tensor]:
    """Return the numbers of each gate's units, (units,), by rising norm of their weights.

    Units that own no weights are whole modules or blocks, of which a gate has one.
    """
    squares = _over_groups(budget, lambda claim, w: w.square(), whole=False)
    return [
        (torch.zeros_like(gate.log_alpha) if total is None else total).argsort()
        for gate, total in zip(budget.gates.values(), squares, strict=True)
    ]


@contextmanager
def closed(gate: HardConcrete, units: Tensor) -> Iterator[None]:
    """Close some units of a gate within a `with` block."""
    was = gate.log_alpha.detach().clone()
    try:
        gate.log_alpha.data[units] = -DECIDED
        yield
    finally:
        gate.log_alpha.data.copy_(was)


def task_loss(model: nn.Module, batches: Batches) -> Callable[[], float]:
    """Return a measure of harm for `removal`: the mean task loss over batches.

    With it, the scores are those of module-wise pruning error, MoPE (arXiv 2403.07839),
    with the loss as the metric.
    """

    @torch.no_grad()
    def harm() -> float:
        return sum(float(loss_of(model, batch)) for batch in batches) / len(batches)

    return harm


def width_then_depth(
    budget: Budget, goal: Mapping[str, float], harm: Callable[[], float], blocks: int = 1
) -> Scores:
    """Score units so that width goes first, as MoPE does (arXiv 2403.07839, section 3.3).

    First, as many units close as the goal asks for, apart from blocks. In the narrow
    network that this leaves, blocks are scored. The lowest of them are to go before any
    unit, so that the other blocks can keep more units.

    Args:
        budget: counts the network
        goal: the sparsity to reach, by cost
        harm: see `removal`
        blocks: number of blocks to remove, of those with a gate
    """
    width = {kind for _, kind in budget.gates} - {"blocks"}
    scores = per_cost(budget, removal(budget, harm, width), goal)
    rows = [row for row, (_, kind) in enumerate(budget.gates) if kind == "blocks"]
    if not rows:
        return scores
    plan = select(budget, goal, scores=scores)
    with ExitStack() as narrow:
        for (site, kind), gate in budget.gates.items():
            gone = torch.ones_like(gate.log_alpha, dtype=torch.bool)
            gone[plan[site.name][kind]] = False
            narrow.enter_context(closed(gate, gone))
        depth = per_cost(budget, removal(budget, harm, {"blocks"}), goal)
    for row in sorted(rows, key=lambda row: float(depth[row]))[:blocks]:
        scores[row] = torch.full_like(scores[row], -torch.inf)
    return scores


def latent_shift(budget: Budget, model: nn.Module, batches: Batches) -> Scores:
    """Score units by how far the mean and the standard deviation of the encoder's output
    move when a group is closed, without labels (LD-Pruner, arXiv 2404.11936, equation 1).

    Both are taken over the frames of all batches, for each feature; the score adds the
    Euclidean norms of their shifts.
    """

    @torch.no_grad()
    def latents() -> tuple[Tensor, Tensor]:
        frames = []
        for batch in batches:
            speech, lengths = batch["speech"].clone(), batch["speech_lengths"]
            output, lengths = model.encode(speech, lengths)
            output = output[0] if isinstance(output, tuple) else output
            mask = torch.arange(output.size(1)) < lengths[:, None]
            frames.append(output[mask])
        whole = torch.cat(frames)
        return whole.mean(0), whole.std(0)

    mean, std = latents()

    def harm() -> float:
        moved, spread = latents()
        return float((moved - mean).norm() + (spread - std).norm())

    return removal(budget, harm)


def loss_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of a batch, a scalar; the batch is copied, since ESPnet normalizes
    features in place."""
    return model(**{name: value.clone() for name, value in batch.items()})[0]


def _gradients(model: nn.Module, batches: Batches) -> Iterator[None]:
    """Compute the gradient of each batch's loss in turn, and leave it in `grad`."""
    for batch in batches:
        model.zero_grad()
        loss_of(model, batch).backward()
        yield
    model.zero_grad()


def _over_groups(
    budget: Budget,
    value: Callable[[Claim, nn.Parameter], Tensor],
    whole: bool = True,
) -> list[Tensor | None]:
    """Sum a value of weights over the weights of each unit, (units,) for each gate.

    A gate whose units own no weights has None instead.

    Args:
        budget: counts the network
        value: returns the values of a claim's tensor, in its shape
        whole: whether to count units that are whole modules, by their last layer
    """
    rows = {units: row for row, units in enumerate(budget.gates)}
    sums: list[Tensor | None] = [None] * len(rows)
    for site in budget.sites:
        for claim in site.claims():
            row = rows.get(Units(site, claim.kind))
            tensor = getattr(claim.module, claim.tensor)
            if row is None or not isinstance(tensor, nn.Parameter):
                continue
            if claim.whole and not whole:
                continue
            values = value(claim, tensor).detach()
            others = [d for d in range(values.dim()) if d != claim.dim]
            features = values.sum(others) if others else values
            units = features.view(claim.outer, -1, claim.inner).sum((0, 2))
            sums[row] = units if sums[row] is None else sums[row] + units
    return sums


def _owned(budget: Budget, sums: Sequence[Tensor | None]) -> Scores:
    """Return the sums of all gates, none of which may be missing.

    Raises:
        ValueError: units that own no weights
    """
    for (site, kind), total in zip(budget.gates, sums, strict=True):
        if total is None:
            raise ValueError(
                f"{site.name}: {kind} own no weights by which they could be "
                "ranked; expected units without them"
            )
    return [total for total in sums if total is not None]


def per_cost(budget: Budget, scores: Scores, costs: Collection[str]) -> Scores:
    """Divide scores by what a unit costs: how much does the loss rise per cost?

    Args:
        budget: counts the network
        scores: estimates of how much the loss rises
        costs: the costs with a target, whose shares are added up
    """
    opened = budget.opened().requires_grad_()
    sparsity = budget.sparsity(opened)
    (price,) = torch.autograd.grad(-sum(sparsity[cost] for cost in costs), opened)
    price = price.clamp_min(FREE * price.max())  # a time may not fall with a unit
    return [s / row[: len(s)].to(s) for s, row in zip(scores, price, strict=True)]


# Takes the budget, the model, batches, and the sparsity to reach in each cost.
Importance = Callable[[Budget, nn.Module, Batches, Mapping[str, float]], Scores]


def for_its_cost(gain: Callable[[Budget, nn.Module, Batches], Scores]) -> Importance:
    """Turn estimates of how much the loss rises into scores for their cost."""
    return lambda budget, model, batches, goal: per_cost(
        budget, gain(budget, model, batches), goal
    )


IMPORTANCES: dict[str, Importance] = {
    "random": lambda budget, *_: random(budget),
    "magnitude_l1": lambda budget, *_: magnitude(budget, 1),
    "magnitude_l2": lambda budget, *_: magnitude(budget, 2),
    "magnitude_l2_even": lambda budget, *_: evenly(magnitude(budget, 2)),
    "depth": lambda budget, *_: depth(budget),
    "taylor": for_its_cost(taylor),
    "fisher": for_its_cost(fisher),
    "latent_shift": for_its_cost(latent_shift),
    "mope": lambda budget, model, batches, goal: width_then_depth(
        budget, goal, task_loss(model, batches)
    ),
}
