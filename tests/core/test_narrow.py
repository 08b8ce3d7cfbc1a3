"""What a layer reads of the residual stream, and gives to it, once its width was cut."""

import copy
import pickle

import torch
from torch import nn

from espnet_l0prune.core.narrow import (
    GatherInput,
    GatherOutput,
    ScatterOutput,
    features_of,
)


class FrontEnd(nn.Module):
    """Gives what it takes, whatever its form."""

    def forward(self, x):
        return x


def test_what_a_narrower_stream_reads_and_gives():
    index = torch.tensor([0, 2, 5])
    x, mask, more = torch.randn(2, 4, 6), torch.ones(1), torch.ones(2)
    (read, *rest) = GatherInput(index)(nn.Identity(), (x, mask, more))
    assert torch.equal(read, x[..., index])
    assert rest == [mask, more]
    front_end = FrontEnd()
    GatherOutput(index).attach_(front_end)
    assert torch.equal(front_end(x), x[..., index])
    out, same = front_end((x, mask))
    assert torch.equal(out, x[..., index])
    assert same is mask
    (out, position), same = front_end(((x, more), mask))
    assert torch.equal(out, x[..., index])
    assert position is more
    assert same is mask
    for layer, shape, dim in (
        (nn.Linear(3, 3), (2, 4, 3), 2),
        (nn.LayerNorm(3), (2, 4, 3), 2),
        (nn.Conv1d(3, 3, 1), (2, 3, 4), 1),
    ):
        given = torch.randn(shape)
        expected = layer(given)
        assert features_of(layer) is None
        names = list(layer.state_dict())
        ScatterOutput(index, 6).attach_(layer)
        assert torch.equal(features_of(layer), index)
        assert list(layer.state_dict()) == names
        for same in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            out = same(given)
            assert out.size(dim) == 6
            assert torch.equal(out.index_select(dim, index), expected)
            assert not out.index_select(dim, torch.tensor([1, 3, 4])).any()
    norm = nn.LayerNorm(3)
    GatherInput(index).attach_(norm)
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x[..., index], (3,)))
    assert torch.equal(features_of(norm), index)
