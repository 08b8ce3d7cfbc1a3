"""What is left of every module of an encoder."""

from dataclasses import dataclass
from pathlib import Path

from espnet_l0prune.plugin.encoder import L0ConformerEncoder
from espnet_l0prune.plugin.experiment import load_experiment
from espnet_l0prune.plugin.sites import count_parameters, find_sites


@dataclass
class Row:
    """A site: its units now and, if it is gated, those that are open."""

    site: str
    unit: str
    units: int
    open: int
    parameters: int
    share: float  # of the encoder's parameters


@dataclass
class Inspection:
    """An encoder, site by site."""

    rows: list[Row]
    encoder_parameters: int
    model_parameters: int
    expected_sparsity: float
    actual_sparsity: float
    reachable_sparsity: float


def inspect_experiment(experiment: Path, checkpoint: str) -> Inspection:
    """Count units and parameters of a gated, a cut or a dense experiment.

    Raises:
        ValueError: files that are missing or damaged, or an encoder without sites
    """
    model, args = load_experiment(experiment, checkpoint)
    encoder = model.encoder
    if not hasattr(encoder, "encoders") or not find_sites(encoder):
        raise ValueError(
            f"{experiment} has encoder: {args.encoder}; expected conformer or "
            "l0_conformer"
        )
    total, rows = count_parameters(encoder), []
    for site in find_sites(encoder):
        parameters = count_parameters(site.module)
        for i, (unit, size) in enumerate(site.sizes.items()):
            gate = site.gates.get(unit)
            opened = size if gate is None else int(gate.is_open().sum())
            counted = 0 if i else parameters  # a module's parameters stand once
            rows.append(Row(site.name, unit, size, opened, counted, counted / total))
    budget = encoder.budget() if isinstance(encoder, L0ConformerEncoder) else None
    return Inspection(
        rows=rows,
        encoder_parameters=total,
        model_parameters=count_parameters(model),
        expected_sparsity=float(budget.expected()) if budget else 0.0,
        actual_sparsity=budget.actual() if budget else 0.0,
        reachable_sparsity=budget.reachable() if budget else 0.0,
    )
