"""Factor the layers of a dense encoder by truncated singular value decomposition.

W = U S V^T is replaced by the product of U sqrt(S) and sqrt(S) V^T, of the largest
singular values alone.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from low_rank import LowRank, can_factor, register
from torch import Tensor, nn

from espnet_l0prune.core.files import replace, save
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.bench import encoder_macs
from espnet_l0prune.plugin.building import build_model, sample_rate_of
from espnet_l0prune.plugin.experiment import load_experiment

SECONDS = 10  # of audio that MACs are counted for
COUNTS = {
    "params": lambda model, rate: count_parameters(model.encoder),
    "macs": lambda model, rate: encoder_macs(model, SECONDS, rate),
}


def as_matrix(layer: nn.Module) -> Tensor:
    """A layer's weight, (outputs, inputs times kernel)."""
    return layer.weight.detach().flatten(1)


def energies(encoder: nn.Module) -> dict[str, Tensor]:
    """For each layer that is one matrix, its squared singular values as shares of their
    sum, over what a direction costs; the largest first.

    A direction costs (m + n) / m n of a layer of (m, n).
    """
    found = {}
    for path, layer in encoder.named_modules():
        if can_factor(layer):
            m, n = as_matrix(layer).shape
            squares = torch.linalg.svdvals(as_matrix(layer)).square()
            found[path] = squares / squares.sum() * m * n / (m + n)
    return found


def ranks_above(
    encoder: nn.Module, worth: Mapping[str, Tensor], threshold: float
) -> dict[str, int]:
    """How many directions of each layer are worth more than a threshold, at least one;
    layers that two factors would not make smaller are left out."""
    ranks = {}
    for path, values in worth.items():
        m, n = as_matrix(encoder.get_submodule(path)).shape
        rank = max(int((values > threshold).sum()), 1)
        if rank * (m + n) < m * n:
            ranks[path] = rank
    return ranks


@torch.no_grad()
def fill_(pair: LowRank, layer: nn.Module) -> None:
    """Give two factors the best approximation of a layer of their rank, in place."""
    first, second = pair.first, pair.second
    u, s, v = torch.linalg.svd(as_matrix(layer), full_matrices=False)
    rank = second.weight.size(1)
    root = s[:rank].sqrt()
    first.weight.copy_((root[:, None] * v[:rank]).view_as(first.weight))
    second.weight.copy_((u[:, :rank] * root).view_as(second.weight))
    if layer.bias is not None:
        second.bias.copy_(layer.bias)


def factorize(
    dense: Path, checkpoint: str, target: Mapping[str, float], out: Path
) -> dict[str, int]:
    """Write the weights of a dense Conformer with factors, as few as the budget asks.

    All layers share one threshold on the energy of a direction for what it costs; it is
    the lowest at which the counts meet the targets.

    Args:
        dense: the experiment's folder
        target: shares of the encoder's costs to remove, by cost; MACs for 10 s of audio
        out: the checkpoint to write, for `encoder: low_rank_conformer`

    Returns:
        `ranks` of `encoder_conf`

    Raises:
        ValueError: files that are missing or damaged; another encoder than a Conformer; a
            target beyond rank 1 everywhere
    """
    register()
    model, args = load_experiment(dense, checkpoint)
    if args.encoder != "conformer":
        raise ValueError(
            f"{dense} has encoder: {args.encoder}; expected conformer, the one that can "
            "be factored"
        )
    rate = sample_rate_of(args)
    limits = {c: (1 - share) * COUNTS[c](model, rate) for c, share in target.items()}
    worth, trial = energies(model.encoder), copy.deepcopy(args)
    trial.encoder = "low_rank_conformer"

    def factored(threshold: float) -> tuple[nn.Module, dict[str, int]]:
        ranks = ranks_above(model.encoder, worth, threshold)
        trial.encoder_conf = {**args.encoder_conf, "ranks": ranks}
        return build_model(trial), ranks

    def fits(threshold: float) -> bool:
        small, _ = factored(threshold)
        return all(COUNTS[c](small, rate) <= limit for c, limit in limits.items())

    steps = torch.cat([*worth.values()]).sort().values.tolist()
    if not fits(steps[-1]):
        raise ValueError(
            f"the target {dict(target)} is beyond what rank 1 everywhere leaves; "
            "expected a lower one"
        )
    low, high = -1, len(steps) - 1  # steps[high] fits, steps[low] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(steps[middle]) else (middle, high)
    small, ranks = factored(steps[high])
    for path in ranks:
        fill_(small.encoder.get_submodule(path), model.encoder.get_submodule(path))
    own = {f"encoder.{path}." for path in ranks}
    state = small.state_dict()
    state |= {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(tuple(own))
    }
    small.load_state_dict(state)  # strict: all of it, and nothing else
    replace(out, lambda part: save(state, part))
    return ranks
