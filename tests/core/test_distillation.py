import math

import pytest
import torch

from espnet_l0prune.core.distillation import (
    LAYER_MAPS,
    layerwise_l1_cosine,
    layerwise_mse,
    prediction_kl,
    transducer_kl,
)


def test_layerwise_mse_against_loops():
    torch.manual_seed(0)
    lengths = [4, 2]
    student = [torch.randn(2, 4, 3) for _ in range(2)]
    teacher = [torch.randn(2, 4, 3) for _ in range(2)]
    layers = []
    for s, t in zip(student, teacher, strict=True):
        squares = [
            float((s[b, i, k] - t[b, i, k]) ** 2)
            for b in range(2)
            for i in range(lengths[b])
            for k in range(3)
        ]
        layers.append(sum(squares) / len(squares))
    found = layerwise_mse(student, teacher, torch.tensor(lengths))
    torch.testing.assert_close(found, torch.tensor(sum(layers) / 2))


def test_prediction_kl_against_loops():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    lengths, temperature = [4, 2], 2.0
    total = 0.0
    for b in range(2):
        for i in range(lengths[b]):
            p = torch.softmax(teacher[b, i] / temperature, 0)
            q = torch.softmax(student[b, i] / temperature, 0)
            total += float((p * (p / q).log()).sum())
    found = prediction_kl(student, teacher, torch.tensor(lengths), temperature)
    torch.testing.assert_close(found, torch.tensor(4 * total / 2))


def test_padding_and_equality():
    same = torch.randn(2, 4, 5)
    other = same.clone()
    other[1, 2:] += 1  # padding only
    lengths = torch.tensor([4, 2])
    assert prediction_kl(same, other, lengths) == 0
    assert layerwise_mse([same], [other], lengths) == 0


def test_layerwise_l1_and_cosine_against_loops():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    lengths, differences, cosines = [4, 2], [], []
    for b in range(2):
        for i in range(lengths[b]):
            s, t = student[b, i], teacher[b, i]
            differences.append(float((s - t).abs().mean()))
            cosine = float(s @ t / (s.norm() * t.norm()))
            cosines.append(math.log(1 + math.exp(-cosine)))
    expected = sum(differences) / 6 + sum(cosines) / 6
    found = layerwise_l1_cosine([student], [teacher], torch.tensor(lengths))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_frames_where_the_teacher_is_blank_can_be_left_out():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 6, 5), torch.randn(1, 6, 5)
    teacher[0, [1, 4], 0] = 9.0
    token = [0, 2, 3, 5]
    teacher[0, token, 0] = -9.0
    found = prediction_kl(student, teacher, torch.tensor([6]), without=0)
    chosen = student[:, token], teacher[:, token], torch.tensor([4])
    torch.testing.assert_close(found, prediction_kl(*chosen))


def test_layer_maps():
    """Of six layers of the teacher, with the student's second, fourth and last left."""
    lengths = torch.tensor([4])
    teacher = {i: torch.randn(1, 4, 3) for i in range(6)}
    student = {i: teacher[j] + 0.01 for i, j in ((1, 0), (3, 2), (5, 5))}
    found = {
        name: layers(student, teacher, lengths) for name, layers in LAYER_MAPS.items()
    }
    assert found["same"] == [(1, 1), (3, 3), (5, 5)]
    assert found["uniform"] == [(1, 1), (3, 3), (5, 5)]
    assert found["last"] == [(1, 3), (3, 4), (5, 5)]
    closest = dict((j, i) for i, j in found["dynamic"])
    assert list(closest) == list(teacher)
    assert (closest[0], closest[2], closest[5]) == (1, 3, 5)

    # a layer that stochastic depth left out for once keeps its place
    dropped = {1: student[1], 3: None, 5: student[5]}
    for name in ("same", "uniform", "last"):
        assert LAYER_MAPS[name](dropped, teacher, lengths) == found[name]
    assert {i for i, _ in LAYER_MAPS["dynamic"](dropped, teacher, lengths)} == {1, 5}
    assert LAYER_MAPS["dynamic"]({1: None}, teacher, lengths) == []

    shallow = {0: teacher[3], 1: teacher[5]}
    assert LAYER_MAPS["uniform"](shallow, teacher, lengths) == [(0, 2), (1, 5)]
    assert LAYER_MAPS["last"](shallow, teacher, lengths) == [(0, 4), (1, 5)]
    assert LAYER_MAPS["same"](shallow, teacher, lengths) == [(0, 0), (1, 1)]
    deep = {i: teacher[i] for i in range(6)}
    for layers in LAYER_MAPS.values():
        assert layers(deep, teacher, lengths) == [(i, i) for i in range(6)]


def lattice_kl(student, teacher, labels, frames, tokens, blank) -> float:
    """Node by node, in probabilities."""
    total = 0.0
    for b in range(len(frames)):
        for t in range(frames[b]):
            for u in range(tokens[b] + 1):
                classes = []
                for logits in (teacher, student):
                    p = torch.softmax(logits[b, t, u].double(), 0)
                    parts = [p[blank]] + ([p[labels[b][u]]] if u < tokens[b] else [])
                    classes.append(torch.stack([*parts, 1 - sum(parts)]))
                p, q = classes
                total += float((p * (p / q).log()).sum())
    return total / len(frames)


@pytest.mark.parametrize("blank", [0, 3])
def test_transducer_kl_against_loops(blank):
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(3, 4, 4, 6), 2 * torch.randn(3, 4, 4, 6)
    labels = torch.tensor([[1, 2, 5], [4, -1, -1], [-1, -1, -1]])
    frames, tokens = torch.tensor([4, 2, 3]), torch.tensor([3, 1, 0])
    lengths = frames, tokens
    found = transducer_kl(student, teacher, labels, *lengths, blank)
    expected = lattice_kl(
        student, teacher, labels.tolist(), frames.tolist(), tokens.tolist(), blank
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert transducer_kl(teacher, teacher, labels, *lengths, blank) == 0


def test_transducer_kl_where_a_class_has_no_probability_left():
    """All of it on the label, or on blank: finite, and so is its gradient."""
    teacher = torch.zeros(1, 1, 2, 4)
    teacher[0, 0, 0, 2] = teacher[0, 0, 1, 0] = 200.0
    student = torch.zeros(1, 1, 2, 4, requires_grad=True)
    one = torch.tensor([1])
    loss = transducer_kl(student, teacher, torch.tensor([[2]]), one, one)
    # log 4 at the first node; at the last, of blank and all else, log 4 too
    assert float(loss) == pytest.approx(2 * math.log(4), rel=1e-4)
    loss.backward()
    assert student.grad.isfinite().all()
    assert student.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_autocast_gives_in_half_precision_is_compared_in_single(dtype):
    torch.manual_seed(0)
    logits = [20 * torch.randn(2, 4, 3, 50).to(dtype) for _ in range(2)]
    lengths, tokens = torch.tensor([4, 2]), torch.tensor([2, 1])
    labels = torch.randint(1, 50, (2, 2))

    def losses(student, teacher) -> list:
        ours, theirs = student[:, :, 0], teacher[:, :, 0]
        return [
            prediction_kl(ours, theirs, lengths, 3.0),
            layerwise_mse([ours], [theirs], lengths),
            layerwise_l1_cosine([ours], [theirs], lengths),
            transducer_kl(student, teacher, labels, lengths, tokens),
        ]

    assert losses(*logits) == losses(*(x.float() for x in logits))
