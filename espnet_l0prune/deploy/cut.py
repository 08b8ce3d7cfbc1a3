"""Cut the closed units out of a gated experiment, verify, and write the result."""

import argparse
import copy
import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.sites import Plan, Structure, plan_of
from espnet_l0prune.deploy.verify import Difference, compare, require_equal
from espnet_l0prune.plugin.encoder import L0ConformerEncoder
from espnet_l0prune.plugin.experiment import load_experiment
from espnet_l0prune.plugin.register import make_scheduler
from espnet_l0prune.plugin.sites import count_parameters

TOLERANCE = 0.005  # how far the real sparsity may be from its target
# What a cut experiment's configuration no longer has: it is not pruned any further.
PRUNING_OPTIONS = (
    "sparsity_scheduler",
    "sparsity_scheduler_conf",
    "init_param",
    "config",
)


@dataclass
class CutReport:
    """What a cut did: written as cut.json."""

    target: float
    sparsity: float  # share of the encoder's parameters that went
    encoder_parameters: tuple[int, int]  # before, after
    model_parameters: tuple[int, int]
    difference: Difference


def cut_(encoder: L0ConformerEncoder, plan: Plan) -> None:
    """Remove in place what is not in the plan, and all gates."""
    for site in encoder.sites():
        site.cut_(plan[site.name])


def check_settled(model, args: argparse.Namespace, experiment: Path) -> float:
    """Return the target that the experiment was pruned for.

    Raises:
        ValueError: no gates; gates that still move; a budget that is missed
    """
    encoder = model.encoder
    sites = encoder.gated_sites() if isinstance(encoder, L0ConformerEncoder) else []
    if not sites or getattr(args, "sparsity_scheduler", None) is None:
        raise ValueError(
            f"{experiment} has no gates that were trained (encoder: {args.encoder}, "
            f"units: {args.encoder_conf.get('units', 'default')}); expected an "
            "experiment with encoder: l0_conformer, units and a sparsity_scheduler"
        )
    budget, target = encoder.budget(), make_scheduler(args).goal
    if not all(g.is_decided() for site in sites for g in site.gates.values()):
        raise ValueError(
            f"the gates of {experiment} are not frozen yet: expected sparsity "
            f"{float(budget.expected()):.4f}, actual {budget.actual():.4f}, target "
            f"{target}. Train on until the phase is 'frozen' (raise max_epoch), or "
            "shorten warmup_steps, ramp_steps and hold_steps."
        )
    if abs(budget.actual() - target) > TOLERANCE:
        raise ValueError(
            f"{experiment} misses its budget: actual sparsity {budget.actual():.4f}, "
            f"target {target}, tolerance {TOLERANCE}. The units may be too coarse: add "
            "ffn_channels or conv_channels to units."
        )
    return target


def cut_model(model, plan: Plan) -> torch.nn.Module:
    """A copy of the model without the closed units; the model stays as it is."""
    small = copy.deepcopy(model)
    cut_(small.encoder, plan)
    return small


def cut_config(config: dict, structure: Structure) -> dict:
    """The configuration of the cut network, for inference and for fine-tuning."""
    new = {k: v for k, v in config.items() if k not in PRUNING_OPTIONS}
    new["encoder_conf"] = {**config["encoder_conf"], "units": [], "structure": structure}
    new["optim"], new["optim_conf"] = "adamw", {}
    return new


def cut_experiment(
    experiment: Path, out: Path, checkpoint: str = "latest.pth", force: bool = False
) -> CutReport:
    """Write the cut network of a gated experiment to `out`.

    `out` gets config.yaml, model.pth, structure.yaml, plan.json and cut.json, all of
    them or none.

    Raises:
        ValueError: see `check_settled`; masked and cut outputs that differ; an `out`
            that exists and no `force`; files that are missing or damaged
        OSError: `out` cannot be written
    """
    _check_free(out, force)
    model, args = load_experiment(experiment, checkpoint)
    config = vars(args)
    target = check_settled(model, args, experiment)
    plan = plan_of(model.encoder.sites())
    small = cut_model(model, plan)

    # The promise is about what a user will load: rebuild it from its configuration.
    small_config = cut_config(config, small.encoder.structure())
    rebuilt = ASRTask.build_model(argparse.Namespace(**copy.deepcopy(small_config)))
    rebuilt.load_state_dict(small.state_dict())
    difference = compare(model, rebuilt)
    require_equal(difference)
    budget, after = model.encoder.budget(), count_parameters(small.encoder)
    if round(budget.total * (1 - budget.actual())) != after:
        raise ValueError(
            f"the cut encoder has {after} parameters, its gates promised "
            f"{budget.total * (1 - budget.actual()):.1f}; nothing was written. This is "
            "a bug in a site's cost: please report it with the experiment's config.yaml"
        )
    report = CutReport(
        target=target,
        sparsity=1 - after / budget.total,
        encoder_parameters=(budget.total, after),
        model_parameters=(count_parameters(model), count_parameters(small)),
        difference=difference,
    )
    _write(out, small, small_config, plan, report)
    return report


def _check_free(out: Path, force: bool) -> None:
    """Let --force replace an earlier cut, and nothing else."""
    if not out.exists():
        return
    if not force:
        raise ValueError(
            f"{out} exists; expected a new folder. Choose another, or give --force to "
            "replace it."
        )
    if not (out / "cut.json").exists():
        raise ValueError(
            f"{out} is no earlier cut (it has no cut.json), so --force does not replace "
            "it; choose another --out."
        )


def _take_place(part: Path, out: Path) -> None:
    """Rename `part` to `out`; an earlier `out` goes only once that is done."""
    if not out.exists():
        part.rename(out)
        return
    old = part.with_name(part.name + ".old")
    out.rename(old)
    try:
        part.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _write(out: Path, model, config: dict, plan: Plan, report: CutReport) -> None:
    """Fill a temporary folder beside `out`, and only then take its place."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        torch.save(model.state_dict(), part / "model.pth")
        structure = config["encoder_conf"]["structure"]
        for name, data in (("config.yaml", config), ("structure.yaml", structure)):
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
            (part / name).write_text(text, "utf-8")
        (part / "plan.json").write_text(json.dumps(plan), "utf-8")
        (part / "cut.json").write_text(json.dumps(asdict(report), indent=1), "utf-8")
        part.chmod(0o755)
        _take_place(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    logging.info(f"Cut model: {out}")
