"""A cut model is fitted to its teacher, on some utterances of the training data."""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet_l0prune.core.draws import same_draws
from espnet_l0prune.core.importance import loss_of
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.reconstruction import (
    HELD_OUT,
    Utterance,
    Writer,
    reconstruct_,
)
from espnet_l0prune.core.steps import Step, quiet
from espnet_l0prune.networks.espnet_modules import TOO_SHORT
from espnet_l0prune.networks.speakers import hears_speakers
from espnet_l0prune.networks.transducer import chunks_fixed
from espnet_l0prune.networks.writers import writers_of
from espnet_l0prune.plugin.counting import sites_of
from espnet_l0prune.plugin.experiment import load_model
from espnet_l0prune.plugin.utterances import read_utterances

FEWEST = 8  # utterances: 2 are held out of the fit, and 1 of those that are left


@dataclass(frozen=True)
class Reconstruction:
    """A `Reconstruction` says what fitting the layers of a cut model was worth.

    Attributes:
        utterances: number of utterances, of which each fourth was held out of the fit
        teacher, before, after: ESPnet's loss on the utterances that were held out: that
            of the teacher, and that of the cut model before and after it was fitted
        taken: whether the loss fell; otherwise the model was left as it was
    """

    utterances: int
    teacher: float
    before: float
    after: float
    taken: bool

    def __str__(self) -> str:
        verdict = "" if self.taken else ", so that it was left as it was"
        return (
            f"fitted to the teacher on {self.utterances} utterances: loss "
            f"{self.before:.4g} -> {self.after:.4g}{verdict}; the teacher's is "
            f"{self.teacher:.4g}"
        )


class Reconstructor:
    """A `Reconstructor` has all that fits a cut model to the teacher it was pruned with.

    It is made before anything is cut, so that what is missing is said first. Utterances
    that are too short for the front end, which training pads, are left out.

    Args:
        model: the gated model that is about to be cut
        args: its configuration
        plan: what the cut keeps
        count: number of utterances

    Raises:
        ValueError: several speakers, too few utterances, no teacher, one of another size,
            or data or files that cannot be read; see also `writers_of`
        ImportError: see `read_utterances`
    """

    def __init__(
        self, model: nn.Module, args: argparse.Namespace, plan: Plan, count: int
    ):
        if hears_speakers(model):
            raise ValueError(
                "the model answers for several speakers, and a layer that they share "
                "would be fitted to what it says of the first; expected a model of one. "
                "Cut without --reconstruct."
            )
        conf = args.model_conf or {}
        config, weights = conf.get("teacher_config"), conf.get("teacher_model_file")
        if config is None or weights is None:
            raise ValueError(
                "there is no teacher to fit the cut model to: model_conf has "
                f"teacher_config: {config} and teacher_model_file: {weights}; expected "
                "the unpruned model's. Cut without --reconstruct."
            )
        with torch.random.fork_rng():
            self.teacher, _ = load_model(config, weights)
        self.teacher.eval()
        sites = sites_of(self.teacher)
        units, theirs = ({s.name: s.sizes for s in x} for x in (sites_of(model), sites))
        for name in {**units, **theirs}:
            if units.get(name) != theirs.get(name):
                raise ValueError(
                    f"the teacher {config} has {theirs.get(name)} in {name}, the model "
                    f"before this cut {units.get(name)}; expected the same, as units are "
                    "told by their numbers. Cut without --reconstruct."
                )
        self.writers: list[Writer] = writers_of(self.teacher, sites, plan)
        self.utterances = [u for u in read_utterances(args, count) if self._is_heard(u)]
        if len(self.utterances) < FEWEST:
            raise ValueError(
                f"the training data have {len(self.utterances)} utterances that are long "
                f"enough; expected at least {FEWEST}. Cut without --reconstruct."
            )

    def fit_(self, model: nn.Module, step: Step = quiet) -> Reconstruction:
        """Fit a cut model in place, and leave it as it was if that makes it worse.

        Args:
            model: the cut model, in evaluation mode
            step: is called with the name of each step
        """
        step(f"comparing it with its teacher on {len(self.utterances)} utterances")
        teacher, before = self._loss(self.teacher), self._loss(model)
        old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        fit = [u for i, u in enumerate(self.utterances) if i % HELD_OUT != HELD_OUT - 1]
        with chunks_fixed(self.teacher.encoder), chunks_fixed(model.encoder):
            reconstruct_(model, self.teacher, self.writers, fit, loss_of, step)
        after = self._loss(model)
        taken = after < before
        if not taken:
            model.load_state_dict(old)
        return Reconstruction(len(self.utterances), teacher, before, after, taken)

    @torch.no_grad()
    def _loss(self, model: nn.Module) -> float:
        held_out = self.utterances[HELD_OUT - 1 :: HELD_OUT]
        with same_draws(), chunks_fixed(model.encoder):  # Mask-CTC draws
            losses = [float(_task_loss(model, utterance)) for utterance in held_out]
        return sum(losses) / len(losses)

    @torch.no_grad()
    def _is_heard(self, utterance: Utterance) -> bool:
        try:
            _task_loss(self.teacher, utterance)
        except TOO_SHORT:
            return False
        return True


def _task_loss(model: nn.Module, utterance: Utterance) -> Tensor:
    """Return ESPnet's own loss, whatever its weight in `model: l0_distill` is."""
    _, stats, _ = model(**{name: value.clone() for name, value in utterance.items()})
    return stats.get("loss_task", stats["loss"])
