"""ESPnet's CTC/attention model that learns from a teacher, under a budget."""

from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor

from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.distillation import layerwise_mse, prediction_kl
from espnet_l0prune.plugin.signature import check_options, show_stock_options
from espnet_l0prune.plugin.teacher import Teacher, Trace, record


class L0DistillModel(ESPnetASRModel):
    """`model: l0_distill`: every option of `espnet`, and

    Args:
        teacher_config, teacher_model_file: the unpruned experiment's files; needed in
            training only, None for no distillation
        layer_weight: weight of the layerwise distillation
        att_kl_weight: weight of the attention decoder's KL divergence
        ctc_kl_weight: weight of the CTC posteriors' KL divergence
        temperature: of both divergences

    The loss is ESPnet's own plus the weighted distillation losses plus the penalty of
    the sparsity constraint.
    """

    def __init__(
        self,
        vocab_size: int,
        token_list: list[str] | tuple[str, ...],
        *,
        teacher_config: str | None = None,
        teacher_model_file: str | None = None,
        layer_weight: float = 1.0,
        att_kl_weight: float = 0.5,
        ctc_kl_weight: float = 0.5,
        temperature: float = 1.0,
        **espnet_conf: Any,
    ):
        check_options(L0DistillModel, espnet_conf, "model_conf")
        if espnet_conf.get("joint_network") is not None:
            raise ValueError(
                "model: l0_distill has no transducer loss yet; expected a decoder with "
                "attention, or none with ctc_weight 1.0"
            )
        super().__init__(vocab_size=vocab_size, token_list=token_list, **espnet_conf)
        if (teacher_config is None) != (teacher_model_file is None):
            raise ValueError(
                f"model_conf: teacher_config is {teacher_config}, teacher_model_file is "
                f"{teacher_model_file}; expected both or neither"
            )
        weights = {"layer_weight": layer_weight, "att_kl_weight": att_kl_weight}
        for name, weight in {**weights, "ctc_kl_weight": ctc_kl_weight}.items():
            if weight < 0:
                raise ValueError(f"model_conf: {name} is {weight}; expected 0 or more")
        if temperature <= 0:
            raise ValueError(f"model_conf: temperature is {temperature}; expected > 0")
        self.teacher_files = teacher_config, teacher_model_file
        self.layer_weight = layer_weight
        self.att_kl_weight, self.ctc_kl_weight = att_kl_weight, ctc_kl_weight
        self.temperature = temperature
        self.teacher: Teacher | None = None
        self.controller: SparsityController | None = None

    def load_teacher_(self) -> None:
        """Bring the teacher in, for training; inference never does."""
        config_file, model_file = self.teacher_files
        if config_file is not None and model_file is not None:
            self.teacher = Teacher(config_file, model_file, self)

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        **kwargs: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss, statistics and weight of a batch.

        Args:
            speech: (batch, samples)
            speech_lengths: (batch,)
            text: token ids, (batch, tokens)
            text_lengths: (batch,)
        """
        with record(self) as trace:
            loss, stats, weight = super().forward(
                speech, speech_lengths, text, text_lengths, **kwargs
            )
        stats = {**stats, "loss_task": loss.detach()}
        if self.teacher is not None:
            for name, (scale, value) in self._distill(trace).items():
                loss = loss + scale * value
                stats[name] = value.detach()
        if self.controller is not None:
            penalty = self.controller.penalty().to(loss)
            loss = loss + penalty
            stats |= self.controller.report()
            stats["loss_sparsity"] = penalty.detach()
        stats["loss"] = loss.detach()
        return force_gatherable((loss, stats, weight), loss.device)

    def _distill(self, student: Trace) -> dict[str, tuple[float, Tensor]]:
        """Each distillation loss by name, with its weight."""
        teacher, frames = self.teacher.follow(student), student.encoder_lengths
        losses = {
            "loss_layer": (
                self.layer_weight,
                layerwise_mse(student.blocks, teacher.blocks, frames),
            )
        }
        if self.ctc is not None:
            student_ctc = self.ctc.ctc_lo(student.encoder_out)
            with torch.no_grad():
                teacher_ctc = self.teacher.model.ctc.ctc_lo(teacher.encoder_out)
            kl = prediction_kl(student_ctc, teacher_ctc, frames, self.temperature)
            losses["loss_ctc_kl"] = self.ctc_kl_weight, kl
        if student.decoder_out is not None:
            tokens = student.decoder_args[3]
            kl = prediction_kl(
                student.decoder_out, teacher.decoder_out, tokens, self.temperature
            )
            losses["loss_att_kl"] = self.att_kl_weight, kl
        return losses


show_stock_options(L0DistillModel, ESPnetASRModel)
