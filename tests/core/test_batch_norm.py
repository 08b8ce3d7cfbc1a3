"""Running statistics that begin anew, beside means taken by hand."""

import pytest
import torch
from torch import nn

from espnet_l0prune.core.batch_norm import batch_norms, restart_, unobserved


def trained(momentum: float = 0.25) -> nn.BatchNorm1d:
    """A norm that has seen three batches."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(2, momentum=momentum)
    for _ in range(3):
        norm(torch.randn(8, 2) + 5)
    return norm


def test_a_restart_forgets_with_the_first_batch():
    norm = trained()
    before = norm.running_mean.clone()
    restart_(norm, forget=True)
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, before)  # until there is something better
    expected, batches = torch.zeros(2), []
    for n in range(1, 8):
        batches.append(torch.randn(8, 2))
        norm(batches[-1])
        share = max(0.25, 1 / n)  # the plain mean of four; then momentum
        expected += share * (batches[-1].mean(0) - expected)
        torch.testing.assert_close(norm.running_mean, expected)
        if n == 4:
            torch.testing.assert_close(expected, torch.stack(batches).mean((0, 1)))


def test_going_on_counts_what_was_seen():
    """As after a checkpoint, whose buffer has the count."""
    norm, other = trained(), trained()
    restart_(norm, forget=True)
    for _ in range(2):
        norm(torch.ones(8, 2) * torch.arange(8)[:, None])
    other.load_state_dict(norm.state_dict())
    restart_(other, forget=False)
    assert int(other.num_batches_tracked) == 2
    batch = torch.randn(8, 2)
    norm(batch)
    other(batch)
    assert torch.equal(norm.running_mean, other.running_mean)
    assert norm.momentum == other.momentum == pytest.approx(1 / 3)


def test_a_second_restart_has_the_norms_own_momentum():
    norm = trained()
    norm.register_forward_pre_hook(lambda *_: None)
    restart_(norm, forget=True)
    norm(torch.randn(8, 2))
    assert norm.momentum == 1
    restart_(norm, forget=True)
    assert norm.momentum == 0.25
    assert len(norm._forward_pre_hooks) == 2  # a stranger's, and one of ours
    for _ in range(5):
        norm(torch.randn(8, 2))
    assert norm.momentum == 0.25


@pytest.mark.parametrize("how", ["evaluation", "unobserved"])
def test_what_is_not_learnt_from_does_not_count(how):
    norm = trained()
    restart_(norm, forget=True)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm.train(how == "unobserved")
    if how == "unobserved":
        with unobserved(nn.Sequential(norm)):
            norm(torch.randn(8, 2))
            assert not norm.track_running_stats
    else:
        norm(torch.randn(8, 2))
    assert norm.track_running_stats
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])
    norm.train()(torch.randn(8, 2))
    assert norm.momentum == 1  # the first batch since


def test_norms_are_observed_again_after_a_failure():
    norm = trained()
    with pytest.raises(ValueError, match="within"), unobserved(norm):
        raise ValueError("within")
    assert norm.track_running_stats


def test_which_norms_keep_running_statistics():
    one, two = nn.BatchNorm1d(2), nn.BatchNorm2d(2)
    others = [
        nn.BatchNorm1d(2, track_running_stats=False),
        nn.BatchNorm1d(2, momentum=None),  # a mean over all batches already
        nn.LayerNorm(2),
    ]
    net = nn.Sequential(one, nn.Sequential(two, *others))
    assert batch_norms([net, net[1], one]) == [one, two]
    assert batch_norms([]) == []
