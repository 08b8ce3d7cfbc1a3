"""Here are ESPnet's models that learn from a teacher while they are pruned."""

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor, nn

from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.distillation import (
    LAYER_LOSSES,
    LAYER_MAPS,
    consistency_kl,
    prediction_kl,
    transducer_kl,
)
from espnet_l0prune.core.disturbance import disturb_speech
from espnet_l0prune.core.ranges import check
from espnet_l0prune.networks.speakers import hears_speakers
from espnet_l0prune.networks.views import in_two_views, warped_alike
from espnet_l0prune.networks.whisper import augmenting
from espnet_l0prune.plugin.compared_layers import layer_losses, measure_layers_
from espnet_l0prune.plugin.heads import (
    ctcs_of,
    is_transducer,
    logits_of,
    name_absent_,
    output_size_of,
    token_loss_of,
)
from espnet_l0prune.plugin.inputs import reads_audio
from espnet_l0prune.plugin.layer_weight import LayerWeight
from espnet_l0prune.plugin.signature import check_options, show_stock_options
from espnet_l0prune.plugin.teacher import Teacher
from espnet_l0prune.plugin.trace import Trace, record
from espnet_l0prune.plugin.transducer import loss_at_hand, provide_loss_

BLANK = 0  # of every CTC head of ESPnet's, and of the task asr_transducer
OFF_BUDGET = 1e4  # more than any loss of an utterance
CHOICES: dict[str, Collection[str]] = {
    "layer_input": ("student", "teacher"),
    "layer_map": LAYER_MAPS,
    "layer_loss": LAYER_LOSSES,
    "layer_projection": ("identity", "teacher", "student"),
    "ctc_kl_frames": ("all", "non_blank"),
}
if TYPE_CHECKING:
    from espnet2.asr.espnet_model import ESPnetASRModel as MixedWith
else:
    MixedWith = object


class L0Distilled(MixedWith):
    """This is `model: l0_distill`, mixed with a task's model, to which it adds options.

    Args:
        teacher_config: config.yaml of the unpruned experiment, which only training
            reads; without it there is no distillation
        teacher_model_file: checkpoint of the unpruned experiment
        task_weight: weight of ESPnet's own loss
        layer_weight: weight of the layerwise distillation loss, in the encoder and in a
            pruned self-supervised front end; by default such that hidden states which are
            lost altogether in either cost half of the task's loss, by the means over the
            first 20 batches of the training
        layer_input: what the compared blocks read: the `student`'s hidden states (Jiang
            et al. 2023), or the `teacher`'s, so that each block learns by itself
            (block-wise distillation), for which every block runs once more
        layer_map: which layers are compared: those of the `same` depth; `uniform` ones,
            spread evenly; the `last` ones; or, with `dynamic`, each of the teacher's with
            the student's that is closest to it
        layer_loss: loss between layers: `mse`, or `l1_cosine`
        layer_projection: what is compared: the layers as they are (`identity`), or after
            a matrix W, which is learnt with the weights and the same for all layers, was
            applied to the `teacher`'s outputs (Jiang et al. 2023, equation 8) or to the
            `student`'s; only training has the matrix
        att_kl_weight: weight of the attention decoder's KL divergence
        ctc_kl_weight: weight of the CTC posteriors' KL divergence
        ctc_kl_frames: frames that the CTC divergence takes: `all`, or the `non_blank`
            ones, where the teacher's best class is a token
        transducer_kl_weight: weight of the KL divergence over a transducer's lattice
        temperature: temperature of the attention decoder's and the CTC posteriors'
            divergences
        disturb_probability: share of the utterances that the student hears with noise,
            babble, echo or in a narrow band, in training alone; the teacher hears all of
            them as they are
        cr_ctc_weight: weight of consistency regularization of the CTC posteriors (CR-CTC,
            arXiv 2410.05101): in training each batch is seen in two views that differ in
            SpecAugment's masks, and each learns from the other; an update takes twice the
            time and memory

    The loss is the weighted sum of ESPnet's own loss and the distillation losses, plus
    the penalty of the sparsity constraint. Two criteria for choosing a model prefer any
    epoch on budget to all others, and are always finite: `loss_on_budget` is ESPnet's
    loss, plus `OFF_BUDGET` before the gates are fixed; `acc_on_budget` is its accuracy,
    if it has one, and 0 before.

    Raises:
        ValueError: an unknown option or choice, a number out of its range, only one of
            the teacher's files, or choices that contradict each other
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if L0Distilled in cls.__bases__:
            show_stock_options(cls, L0Distilled, cls.__mro__[2])

    def __init__(
        self,
        vocab_size: int,
        token_list: list[str] | tuple[str, ...],
        *,
        teacher_config: str | None = None,
        teacher_model_file: str | None = None,
        task_weight: float = 1.0,
        layer_weight: float | None = None,
        layer_input: str = "student",
        layer_map: str = "same",
        layer_loss: str = "mse",
        layer_projection: str = "identity",
        att_kl_weight: float = 0.5,
        ctc_kl_weight: float = 0.5,
        ctc_kl_frames: str = "all",
        transducer_kl_weight: float = 0.5,
        temperature: float = 1.0,
        disturb_probability: float = 0.0,
        cr_ctc_weight: float = 0.0,
        **espnet_conf: Any,
    ):
        files = {
            "teacher_config": teacher_config,
            "teacher_model_file": teacher_model_file,
        }
        check_options(type(self), {**files, **espnet_conf}, "model_conf")
        with loss_at_hand():
            super().__init__(vocab_size=vocab_size, token_list=token_list, **espnet_conf)
        name_absent_(self)
        provide_loss_(self)
        if (teacher_config is None) != (teacher_model_file is None):
            raise ValueError(
                f"model_conf: teacher_config is {teacher_config}, teacher_model_file is "
                f"{teacher_model_file}; expected both or neither"
            )
        numbers = {
            "task_weight": task_weight,
            "layer_weight": 0.0 if layer_weight is None else layer_weight,
            "att_kl_weight": att_kl_weight,
            "ctc_kl_weight": ctc_kl_weight,
            "transducer_kl_weight": transducer_kl_weight,
            "temperature": temperature,
            "disturb_probability": disturb_probability,
            "cr_ctc_weight": cr_ctc_weight,
        }
        check("model_conf", numbers)
        chosen = {
            "layer_input": layer_input,
            "layer_map": layer_map,
            "layer_loss": layer_loss,
            "layer_projection": layer_projection,
            "ctc_kl_frames": ctc_kl_frames,
        }
        for name, choice in chosen.items():
            if choice not in CHOICES[name]:
                raise ValueError(
                    f"model_conf: {name} is {choice!r}; expected one of "
                    f"{', '.join(CHOICES[name])}"
                )
        if layer_input == "teacher" and layer_map != "same":
            raise ValueError(
                f"model_conf: layer_map is {layer_map!r}, layer_input is 'teacher'; "
                "expected layer_map: same, as blocks at the same place read the same"
            )
        if hears_speakers(self) and (layer_map, layer_input) != ("same", "student"):
            raise ValueError(
                f"model_conf: layer_map is {layer_map!r}, layer_input is "
                f"{layer_input!r}; expected 'same' and 'student', as some blocks run for "
                "one speaker, and others for all"
            )
        hears = reads_audio(self)
        if disturb_probability and not hears:
            raise ValueError(
                f"model_conf: disturb_probability is {disturb_probability}; expected 0, "
                "as this model reads no audio, which could be disturbed"
            )
        if cr_ctc_weight and not ctcs_of(self):
            raise ValueError(
                f"model_conf: cr_ctc_weight is {cr_ctc_weight}; expected 0, as this "
                "model has no CTC, or gives its loss no weight"
            )
        self.cr_ctc_weight = cr_ctc_weight
        self.layer_map, self.layer_loss = layer_map, layer_loss
        self.layer_projection, self.ctc_kl_frames = layer_projection, ctc_kl_frames
        self.teacher_files = teacher_config, teacher_model_file
        self.task_weight = task_weight
        self.layer_weight, self.layer_input = layer_weight, layer_input
        self.att_kl_weight, self.ctc_kl_weight = att_kl_weight, ctc_kl_weight
        self.transducer_kl_weight = transducer_kl_weight
        self.temperature, self.disturb_probability = temperature, disturb_probability
        self.teacher: Teacher | None = None
        self.chosen_layer_weights: dict[str, LayerWeight] = {}
        self.register_parameter("projection", None)
        self.controller: SparsityController | None = None
        self.register_load_state_dict_pre_hook(_drop_projection)

    def load_teacher_(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the teacher and make the layers' projection, which only training needs.

        Args:
            optimizer: trains the projection, which is added to it, and keeps what
                `LayerWeight` has measured

        Raises:
            ValueError: see `Teacher`
        """
        config_file, model_file = self.teacher_files
        if config_file is None or model_file is None:
            return
        self.teacher = Teacher(config_file, model_file, self)
        if self.layer_weight is None:
            for network in ("encoder", "frontend"):
                self.chosen_layer_weights[network] = LayerWeight(optimizer, network)
        if self.layer_projection != "identity" and self.layer_weight != 0:
            size, like = output_size_of(self.encoder), next(self.parameters())
            identity = torch.eye(size, dtype=like.dtype, device=like.device)
            self.projection = nn.Parameter(identity)
            optimizer.add_param_group({"params": self.projection})

    def forward(self, **batch: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return loss, statistics and weight of a batch, as every model of ESPnet does.

        Args:
            batch: what the task's model takes, by name. Most take `speech`, (batch,
                samples), and `text`, token ids, (batch, tokens), -1 where there is
                padding, each with its `_lengths`, (batch,).
        """
        specaug = None
        views = self.training and self.cr_ctc_weight > 0
        if views:
            specaug = augmenting(self)[0].specaug
            batch = {name: in_two_views(value) for name, value in batch.items()}
        undisturbed = dict(batch)
        disturbs = self.training and self.disturb_probability > 0
        if disturbs:
            batch["speech"] = disturb_speech(
                batch["speech"],
                batch["speech_lengths"],
                self.disturb_probability,
                self.sample_rate,
            )
        teacher = None
        own_frontend = self.teacher is not None and self.teacher.has_own_frontend
        with warped_alike(specaug):
            with record(self, own_frontend) as trace:
                loss, stats, weight = super().forward(**batch)
            if self.teacher is not None:
                teacher = self.teacher.follow(trace, undisturbed, disturbs)
        stats = {**stats, "loss_task": loss.detach()}
        loss = self.task_weight * loss
        if views:
            kl = sum(
                consistency_kl(*trace.ctc_logits(name, ctc))
                for name, ctc in ctcs_of(self).items()
            )
            loss, stats["loss_cr_ctc"] = loss + self.cr_ctc_weight * kl, kl.detach()
        if teacher is not None:
            if self.training:
                measure_layers_(self, stats["loss_task"], trace, teacher)
            losses = self.distill(trace, teacher, batch["text_lengths"])
            for name, (scale, value) in losses.items():
                loss = loss + scale * value
                stats[name] = value.detach()
        if self.controller is not None:
            penalty = self.controller.penalty().to(loss)
            loss = loss + penalty
            stats |= self.controller.report()
            stats["loss_sparsity"] = penalty.detach()
        on_budget = self.controller is None or self.controller.on_budget
        stats["loss_on_budget"] = stats["loss_task"] + (0 if on_budget else OFF_BUDGET)
        if stats.get("acc") is not None:
            stats["acc_on_budget"] = stats["acc"] if on_budget else 0.0
        stats["loss"] = loss.detach()
        return force_gatherable((loss, stats, weight), loss.device)

    def distill(
        self, student: Trace, teacher: Trace, text_lengths: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """Return each distillation loss, with its weight, by name."""
        losses = {}
        if self.layer_weight != 0:
            losses = layer_losses(self, student, teacher)
        if self.ctc_kl_weight:
            without = BLANK if self.ctc_kl_frames == "non_blank" else None
            for name, ctc in ctcs_of(self).items():
                logits, frames = student.ctc_logits(name, ctc)
                how = frames, self.temperature, without
                kl = prediction_kl(logits, teacher.ctc_out[name], *how)
                weight = getattr(self, "interctc_weight", 0.0)
                # weighed as in ESPnet's own loss; the student's layer may be dropped
                if weight and teacher.between_out and student.between:
                    between = [
                        prediction_kl(logits_of(ctc)(mine), teacher.between_out[i], *how)
                        for i, mine in student.between.items()
                    ]
                    kl = (1 - weight) * kl + weight * sum(between) / len(between)
                losses[f"loss_{name}_kl"] = self.ctc_kl_weight, kl
        transducer = is_transducer(self)
        if student.joint_out is not None and self.transducer_kl_weight:
            kl = transducer_kl(
                student.joint_out,
                teacher.joint_out,
                student.decoder_args[0][:, 1:],  # the labels, behind a blank
                student.memory_lengths,
                text_lengths,
                getattr(self, "blank_id", BLANK),
            )
            losses["loss_transducer_kl"] = self.transducer_kl_weight, kl
        attended = teacher.decoder_out is not None and not transducer
        if attended and self.att_kl_weight:
            _, _, tokens, lengths = student.decoder_args[:4]
            both: tuple[Any, Any] = student.decoder_out, teacher.decoder_out
            if hasattr(self, "mask_token"):  # Mask-CTC learns these alone
                masked = tokens == self.mask_token
                both = both[0][masked][None], both[1][masked][None]
                lengths = masked.sum()[None]
            kl = prediction_kl(*both, lengths, self.temperature) * len(both[0])
            by_token = token_loss_of(self).normalize_length  # as ESPnet's own loss
            kl = kl / (lengths.sum() if by_token else len(tokens))
            losses["loss_att_kl"] = self.att_kl_weight, kl
        return losses


def _drop_projection(model: L0Distilled, state: dict, prefix: str, *_) -> None:
    """Drop the projection from a state where the model will not train with it."""
    if model.projection is None:
        state.pop(f"{prefix}projection", None)


@functools.cache
def distilled(stock: type) -> type[L0Distilled]:
    """Return the kind of a task's model, one of ESPnet's classes, that has a teacher."""
    name, text = f"L0{stock.__name__}", f"This is {stock.__name__}; see `L0Distilled`."
    made = type(name, (L0Distilled, stock), {"__doc__": text, "__module__": __name__})
    globals()[name] = made  # where pickle looks for it
    return made
