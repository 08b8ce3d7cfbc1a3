"""Losses between a student and its teacher.

Both predictions' losses are summed over positions and averaged over utterances, as
ESPnet's CTC and attention losses are, so that their weights compare.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e4  # the log-probability of what cannot happen


def _valid(lengths: Tensor, size: int) -> Tensor:
    """(batch, size): which positions are not padding."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def layerwise_mse(
    student: Sequence[Tensor], teacher: Sequence[Tensor], lengths: Tensor
) -> Tensor:
    """(1 / L) sum_i MSE(h_student_i, h_teacher_i) (Jiang et al. 2023, equation 8).

    Where the student's residual width is pruned, the paper's projection W of the
    teacher is the selection of the features that are left; else it is the identity.

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


def transducer_kl(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    frames: Tensor,
    tokens: Tensor,
    blank: int = 0,
) -> Tensor:
    """KL over the lattice of a transducer, of three classes at each node: the next
    label, blank, and all else (Panchapagesan et al. 2021, arXiv 2011.06110).

    Args:
        student, teacher: logits of the joint network,
            (batch, time, tokens + 1, vocabulary)
        labels: (batch, tokens)
        frames, tokens: valid lengths, (batch,)
        blank: its index in the vocabulary
    """
    in_time = _valid(frames, student.size(1))[:, :, None]
    valid = in_time & _valid(tokens + 1, student.size(2))[:, None, :]
    # at the last node no label follows: two classes
    has_label = _valid(tokens, student.size(2))[:, None, :].expand_as(valid)[valid]
    following = F.pad(labels, (0, 1))[:, None, :, None].clamp(min=0)

    def classes(logits: Tensor) -> Tensor:
        """Log-probabilities of the three classes at each valid node, (nodes, 3)."""
        total = logits.logsumexp(-1)
        index = following.expand(-1, logits.size(1), -1, -1)
        label = (logits.gather(-1, index).squeeze(-1) - total)[valid]
        label = label.masked_fill(~has_label, NEVER)
        silent = (logits[..., blank] - total)[valid]
        rest = -torch.expm1(torch.logaddexp(label, silent).clamp(max=-1e-6))
        return torch.stack([label, silent, rest.log()], dim=-1)

    log_p, log_q = classes(teacher), classes(student)
    loss = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return loss / student.size(0)
