"""A model with closed gates is compared with the open one, by what both predict."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_l0prune.core.candidates import Closing, closing
from espnet_l0prune.core.draws import same_draws
from espnet_l0prune.core.steps import Step, how_far, quiet
from espnet_l0prune.networks.espnet_modules import TOO_SHORT
from espnet_l0prune.networks.transducer import chunks_fixed
from espnet_l0prune.plugin.counting import evaluation
from espnet_l0prune.plugin.heads import ctcs_of, logits_of
from espnet_l0prune.plugin.model import L0Distilled
from espnet_l0prune.plugin.trace import Trace, record

Utterance = Mapping[str, Tensor]  # a batch of one, as ESPnet's model takes it
# Options of `model: l0_distill` by which every head counts alike, and nothing else does
ALL_HEADS = {
    "teacher_config": None,
    "teacher_model_file": None,
    "layer_weight": 0.0,
    "att_kl_weight": 1.0,
    "ctc_kl_weight": 1.0,
    "ctc_kl_frames": "all",
    "transducer_kl_weight": 1.0,
    "temperature": 1.0,
    "cr_ctc_weight": 0.0,
}
# What lets ESPnet's models search for the best text of each utterance in evaluation
ERROR_RATES = (
    *("error_calculator", "error_calculator_trans"),
    *("asr_error_calculator", "mt_error_calculator"),
    *("report_cer", "report_wer"),
)


@dataclass(frozen=True)
class Harm:
    """A `Harm` is what closed units do to a model, as the mean over utterances.

    Attributes:
        kls: for each head, such as `ctc`, `att` or `transducer`, the KL divergence of
            what it predicts from what it does with all gates open, in nats, summed over
            positions as in distillation (see `L0Distilled`)
        loss: ESPnet's loss of the model with the closed units
    """

    kls: dict[str, float]
    loss: float

    @property
    def kl(self) -> float:
        """Return the KL divergence of all heads, which is their sum."""
        return sum(self.kls.values())


def without_error_rates_(model: L0Distilled) -> None:
    """Let a model report no error rates, which can take far longer than all else."""
    for name in ERROR_RATES:
        setattr(model, name, None)


@torch.no_grad()
def long_enough(model: L0Distilled, utterances: Sequence[Utterance]) -> list[Utterance]:
    """Return the utterances that are not too short for the model's front end.

    ESPnet's training pads them by longer ones.
    """
    heard = []
    for utterance in utterances:
        with evaluation(model):
            try:
                _predict(model, utterance)
            except TOO_SHORT:
                continue
        heard.append(utterance)
    return heard


@torch.no_grad()
def harms_of(
    model: L0Distilled,
    utterances: Sequence[Utterance],
    closings: Sequence[Closing],
    step: Step = quiet,
) -> list[Harm]:
    """Return the harm of each closing; the model is left as it was.

    Args:
        model: has gates, all of them open, and the options `ALL_HEADS`
        utterances: some that are long enough
        closings: the units that close at once; with none of them the divergence is 0
        step: is called with how much is done, and how long the rest will take
    """
    totals: list[dict[str, float]] = [{} for _ in closings]
    begun, n, passes = time.monotonic(), len(utterances), len(closings) + 1
    for i, utterance in enumerate(utterances):
        with evaluation(model):
            opened, _ = _predict(model, utterance)
            _keep_predictions_(model, opened)
            item, seconds = f"utterance {i + 1} of {n}", time.monotonic() - begun
            step(how_far(item, i * passes + 1, n * passes, seconds))
            for total, units in zip(totals, closings, strict=True):
                with closing(units):
                    found, loss = _predict(model, utterance)
                kls = model.distill(found, opened, utterance["text_lengths"])
                for name, (_, kl) in kls.items():
                    head = name.removeprefix("loss_").removesuffix("_kl")
                    # rounded, it may be a little below 0
                    total[head] = total.get(head, 0.0) + max(float(kl), 0.0)
                total["loss"] = total.get("loss", 0.0) + loss
    means = [{name: value / n for name, value in total.items()} for total in totals]
    return [Harm(loss=mean.pop("loss"), kls=mean) for mean in means]


def _predict(model: L0Distilled, utterance: Utterance) -> tuple[Trace, float]:
    """Return the trace of a forward, and ESPnet's loss.

    The utterance is copied, since ESPnet normalizes features in place. What is drawn at
    random, such as Mask-CTC's masks, is the same in each call.
    """
    with same_draws(), chunks_fixed(model.encoder), record(model) as trace:
        _, stats, _ = model(**{name: value.clone() for name, value in utterance.items()})
    return trace, float(stats["loss_task"])


def _keep_predictions_(model: L0Distilled, trace: Trace) -> None:
    """Add what heads predict that the forward has not called, while gates are open."""
    for name, ctc in ctcs_of(model).items():
        trace.ctc_out[name] = trace.ctc_logits(name, ctc)[0]
        trace.between_out = {
            i: logits_of(ctc)(hidden) for i, hidden in trace.between.items()
        }
