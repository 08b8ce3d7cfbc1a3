"""What may be asked of a pruning."""

import pytest

from espnet_l0prune.core.goal import Goal


def test_a_number_is_of_the_parameters():
    assert Goal(0.3).targets == {"params": 0.3}
    both = {"params": 0.4, "macs": 0.6}
    assert Goal(both).targets == both
    assert Goal(both) == Goal(dict(both)) != Goal(both, scope="model")


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"target": 0}, "target is 0; expected a number in"),
        ({"target": 1}, "target is 1"),
        ({"target": -0.1}, "target is -0.1"),
        ({"target": {"flops": 0.3}}, "some of params, macs"),
        ({"target": {}}, "expected a number, or a mapping"),
        (
            {"target": {"params": 0.3, "macs": 1.2}},
            r"target is 1.2; expected a number in \(0, 1\)",
        ),
        ({"scope": "joint"}, "scope is 'joint'; expected one of frontend, encoder, deco"),
        ({"per": "layer"}, "per is 'layer'; expected block, kind, or null"),
        ({"seconds": 0}, "sparsity_goal_conf: seconds is 0; expected a number in"),
        ({"tokens": 1.5}, "tokens is 1.5; expected a whole number"),
    ],
)
def test_what_cannot_be_asked(conf, message):
    with pytest.raises(ValueError, match=message):
        Goal(**conf)
