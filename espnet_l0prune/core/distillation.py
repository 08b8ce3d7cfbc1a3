"""These losses measure how far a student is from its teacher.

Losses between predictions are summed over positions and averaged over utterances, as
ESPnet's CTC and attention losses are, so that their weights can be compared.

A map of layers says which layers are compared. It takes the hidden states (batch, time,
size) of the student and of the teacher by place (the layer's number), and the numbers of
valid frames, (batch,). It returns pairs of places, (student's, teacher's). The state of a
student's layer is None if stochastic depth has skipped it.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Layers = Mapping[int, Tensor]  # hidden states (batch, time, size) by place
Student = Mapping[int, Tensor | None]
Pair = tuple[int, int]
NEVER = -1e4  # the log-probability of an impossible class


def _valid(lengths: Tensor, size: int) -> Tensor:
    """Return which positions are not padding, (batch, size) bool."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _wide(x: Tensor) -> Tensor:
    """Convert to float32 at least.

    Autocast gives half precision, in which sums over a vocabulary or over features are
    off by several percent.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Maps of layers. A student has only the layers that still exist.
def same_depth(student: Student, teacher: Layers, lengths: Tensor) -> list[Pair]:
    """Pair each layer with the teacher's of the same place (Jiang et al. 2023)."""
    return [(i, i) for i in student if i in teacher]


def uniform(student: Student, teacher: Layers, lengths: Tensor) -> list[Pair]:
    """Pair layer j of n with the teacher's layer j T / n of T, so that the last meet."""
    layers, n = list(teacher), len(student)
    places = (round((j + 1) * len(layers) / n) - 1 for j in range(n))
    return [(i, layers[max(k, 0)]) for i, k in zip(student, places, strict=True)]


def last_layers(student: Student, teacher: Layers, lengths: Tensor) -> list[Pair]:
    """Pair the last n layers of both, where n is the smaller of their numbers."""
    return [*zip(reversed([*student]), reversed([*teacher]), strict=False)][::-1]


@torch.no_grad()
def dynamic(student: Student, teacher: Layers, lengths: Tensor) -> list[Pair]:
    """Pair each of the teacher's layers with the student's that is closest to it now, in
    mean squared error (Xia et al. 2022, arXiv 2204.00408)."""
    here = {i: hidden for i, hidden in student.items() if hidden is not None}
    if not here:
        return []
    return [
        (min(here, key=lambda i: float(_mse(here[i], hidden, lengths))), j)
        for j, hidden in teacher.items()
    ]


LAYER_MAPS = {
    "same": same_depth,
    "uniform": uniform,
    "last": last_layers,
    "dynamic": dynamic,
}


def _frames(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Return the valid frames of hidden states (batch, time, size), (frames, size).

    Two networks may differ in how much padding they have after the longest utterance. A
    layer that runs once for each of several speakers has their states one after another.
    """
    lengths = lengths.repeat(len(hidden) // len(lengths))
    return _wide(hidden[_valid(lengths, hidden.size(1))])


def _mse(student: Tensor, teacher: Tensor, lengths: Tensor) -> Tensor:
    return F.mse_loss(_frames(student, lengths), _frames(teacher, lengths))


def _l1_cosine(student: Tensor, teacher: Tensor, lengths: Tensor) -> Tensor:
    s, t = _frames(student, lengths), _frames(teacher, lengths)
    return F.l1_loss(s, t) - F.logsigmoid(F.cosine_similarity(s, t, dim=-1)).mean()


def layerwise_mse(
    student: Sequence[Tensor], teacher: Sequence[Tensor], lengths: Tensor
) -> Tensor:
    """Return (1 / L) sum_i MSE(h_student_i, h_teacher_i), the mean over valid frames and
    features (Jiang et al. 2023, arXiv 2305.19549, equation 8).

    The paper's projection W of the teacher's states is left to the caller.

    Args:
        student, teacher: L hidden states each, (batch, time, size)
        lengths: number of valid frames, (batch,)
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([_mse(s, t, lengths) for s, t in pairs]).mean()


def layerwise_l1_cosine(
    student: Sequence[Tensor], teacher: Sequence[Tensor], lengths: Tensor
) -> Tensor:
    """Return (1 / L) sum_i of L1 - log sigmoid(cos), means over valid frames (Chang et
    al. 2022, arXiv 2110.01900, equation 1).

    Args:
        student, teacher: L hidden states each, (batch, time, size)
        lengths: number of valid frames, (batch,)
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([_l1_cosine(s, t, lengths) for s, t in pairs]).mean()


LAYER_LOSSES = {"mse": layerwise_mse, "l1_cosine": layerwise_l1_cosine}


def prediction_kl(
    student: Tensor,
    teacher: Tensor,
    lengths: Tensor,
    temperature: float = 1.0,
    without: int | None = None,
) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)) (Hinton et al. 2015).

    Args:
        student, teacher: logits, (batch, time, vocabulary)
        lengths: number of valid positions, (batch,)
        temperature: T > 0; larger is softer
        without: a class, or None; positions where the teacher prefers it are left out
    """
    valid = _valid(lengths, student.size(1))
    if without is not None:
        valid = valid & (teacher.argmax(-1) != without)
    log_p = F.log_softmax(_wide(teacher[valid]) / temperature, dim=-1)
    log_q = F.log_softmax(_wide(student[valid]) / temperature, dim=-1)
    loss = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return temperature**2 * loss / student.size(0)


def consistency_kl(logits: Tensor, lengths: Tensor) -> Tensor:
    """Return 1/2 (KL(a || b) + KL(b || a)) of two views, each a target without gradient
    for the other (CR-CTC, Yao et al. 2024, arXiv 2410.05101, equation 4).

    Args:
        logits: of the first view of all utterances, then of the second, (2 batch, time,
            vocabulary)
        lengths: number of valid frames, (2 batch,)
    """
    half = len(logits) // 2
    one, two = logits[:half], logits[half:]
    return 0.5 * (
        prediction_kl(one, two.detach(), lengths[:half])
        + prediction_kl(two, one.detach(), lengths[half:])
    )


def transducer_kl(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    frames: Tensor,
    tokens: Tensor,
    blank: int = 0,
) -> Tensor:
    """Return the KL over a transducer's lattice of three classes at each node: the next
    label, blank, and all else (Panchapagesan et al. 2021, arXiv 2011.06110).

    Args:
        student, teacher: logits of the joint network, (batch, time, tokens + 1,
            vocabulary)
        labels: (batch, tokens), negative where there is padding
        frames, tokens: number of valid frames and tokens, (batch,)
        blank: index of the blank in the vocabulary
    """
    in_time = _valid(frames, student.size(1))[:, :, None]
    valid = in_time & _valid(tokens + 1, student.size(2))[:, None, :]
    # no label follows the last node, which has two classes
    has_label = _valid(tokens, student.size(2))[:, None, :].expand_as(valid)[valid]
    following = F.pad(labels, (0, 1))[:, None, :, None].clamp(min=0)

    def classes(logits: Tensor) -> Tensor:
        """Return the classes' log-probabilities at each valid node, (nodes, 3)."""
        logits = _wide(logits)
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
