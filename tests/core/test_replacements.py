"""What stands where nothing is left of a branch."""

import torch
from torch import nn

from espnet_l0prune.core.replacements import Constant


def test_what_a_branch_without_units_gives():
    value, x = torch.tensor([1.0, 2.0, 3.0]), torch.randn(2, 5, 4)
    constant = Constant(value, 3, {"heads": 0})
    assert isinstance(constant.value, nn.Parameter)
    assert constant.value.data_ptr() != value.data_ptr()
    assert constant.sizes == {"heads": 0}
    for given in (x, (x, torch.randn(1))):
        out = constant(given, x, mask=None)
        assert out.shape == (2, 5, 3)
        assert torch.equal(out, value.expand(2, 5, 3))
    silent = Constant(None, 3, {})
    assert list(silent.parameters()) == []
    assert torch.equal(silent(x), torch.zeros(2, 5, 3))
