import torch

from espnet_l0prune.core.distillation import layerwise_mse, prediction_kl


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
