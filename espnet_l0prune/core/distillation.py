"""Losses between a student and its teacher.

Both predictions' losses are summed over positions and averaged over utterances, as
ESPnet's CTC and attention losses are, so that their weights compare.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _valid(lengths: Tensor, size: int) -> Tensor:
    """(batch, size): which positions are not padding."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def layerwise_mse(
    student: Sequence[Tensor], teacher: Sequence[Tensor], lengths: Tensor
) -> Tensor:
    """(1 / L) sum_i MSE(h_student_i, h_teacher_i) (Jiang et al. 2023, equation 8).

    The projection W of the paper is the identity: the residual width is not pruned.

    Args:
        student, teacher: L hidden states each, (batch, time, size)
        lengths: valid frames, (batch,)
    """
    valid = _valid(lengths, student[0].size(1))
    losses = [
        F.mse_loss(s[valid], t[valid]) for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(losses).mean()


def prediction_kl(
    student: Tensor, teacher: Tensor, lengths: Tensor, temperature: float = 1.0
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) (Hinton et al. 2015).

    Args:
        student, teacher: logits, (batch, time, vocabulary)
        lengths: valid positions, (batch,)
        temperature: T > 0; larger is softer
    """
    valid = _valid(lengths, student.size(1))
    log_p = F.log_softmax(teacher[valid] / temperature, dim=-1)
    log_q = F.log_softmax(student[valid] / temperature, dim=-1)
    loss = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return temperature**2 * loss / student.size(0)
