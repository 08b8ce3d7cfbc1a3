"""Linear attention against loops, and against the softmax that it estimates."""

import copy

import pytest
import torch

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.plan import Plan, plan_of
from espnet_l0prune.networks.espnet_modules import MultiHeadedAttention
from espnet_l0prune.networks.linear_attention import (
    LEAST,
    LinearAttention,
    orthogonal_gaussian,
)
from espnet_l0prune.testing.models import ENCODER, budget, model
from espnet_l0prune.testing.runs import make_data, run
from espnet_l0prune.testing.updates import batch

CONF = {"selfattention_layer_type": "selfattn", "pos_enc_layer_type": "abs_pos"}
CONF |= {"random_features": 16}


def test_random_vectors_are_gaussian_and_orthogonal_in_sets():
    torch.manual_seed(0)
    w = orthogonal_gaussian(8, 8 * 2000 + 3)
    assert w.shape == (8, 16_003)
    for i in (0, 8, 16):
        inner = w[:, i : i + 8].T @ w[:, i : i + 8]
        torch.testing.assert_close(inner, inner.diag().diag(), atol=1e-5, rtol=0)
    torch.testing.assert_close(w.mean(1), torch.zeros(8), atol=0.05, rtol=0)
    torch.testing.assert_close(w.cov(), torch.eye(8), atol=0.05, rtol=0)
    fourth = w.pow(4).mean()  # 3 of a Gaussian
    assert float(fourth) == pytest.approx(3, rel=0.1)


def attention(features: int, heads: int = 2, size: int = 8) -> LinearAttention:
    torch.manual_seed(0)
    return LinearAttention(heads, size, features).double().eval()


def test_against_loops():
    net = attention(5)
    x = torch.randn(2, 6, 8).double()
    mask = torch.ones(2, 1, 6, dtype=torch.bool)
    mask[1, 0, 4:] = False
    found = net(x, x, x, mask)
    q, k, v = net.forward_qkv(x, x, x)
    for b, frames in enumerate((6, 4)):
        rows = []
        for t in range(frames):
            heads = []
            for h in range(2):

                def exponents(y):
                    y = y / 4**0.25
                    return y @ net.projection - y @ y / 2

                query = exponents(q[b, h, t])
                keys = torch.stack([exponents(k[b, h, s]) for s in range(frames)])
                phi = torch.exp(query - query.max()) + LEAST
                phis = torch.exp(keys - keys.max()) + LEAST
                weights = phis @ phi
                heads.append((weights / weights.sum()) @ v[b, h, :frames])
            rows.append(torch.cat(heads))
        expected = net.linear_out(torch.stack(rows))
        torch.testing.assert_close(found[b, :frames], expected)
    assert found.isfinite().all()


def test_more_features_come_closer_to_softmax():
    x = torch.randn(1, 20, 8, generator=torch.manual_seed(1)).double()
    errors = []
    for features in (16, 256, 65_536):
        net = attention(features)
        exact = MultiHeadedAttention(2, 8, 0.0).double().eval()
        exact.load_state_dict(net.state_dict(), strict=False)
        truth = exact(x, x, x, None)
        errors.append(float((net(x, x, x, None) - truth).norm() / truth.norm()))
    assert errors[2] < 0.02
    assert errors[2] < errors[1] < errors[0]


def test_extreme_scores_stay_finite():
    net = attention(32).float()
    x = 100 * torch.randn(1, 10, 8)
    x.requires_grad_()
    out = net(x, x, x, torch.ones(1, 1, 10))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_audio_in_half_precision(dtype):
    """The sums over frames go beyond 65504."""
    net = attention(128, size=16).float()
    x = 0.1 * torch.randn(1, 4000, 16)
    exact = net(x, x, x, None)
    with torch.autocast("cpu", dtype=dtype):
        found = net(x, x, x, None)
    assert found.dtype == dtype
    assert float((found - exact).norm() / exact.norm()) < 0.02
    found = net.to(dtype)(*[x.to(dtype)] * 3, None)
    assert float((found - exact).norm() / exact.norm()) < 0.02


def test_weights_for_attention_plots():
    net, x = attention(5), torch.randn(1, 6, 8).double()
    assert net.attn is None
    out = net(x, x, x, None)
    _, _, v = net.forward_qkv(x, x, x)
    weighted = (net.attn @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(net.linear_out(weighted), out)
    net.train()(x, x, x, None)
    assert net.attn is None
    copy.deepcopy(net)


def test_a_run_with_espnets_attention_plots(tmp_path):
    make_data(tmp_path)
    conf = {**ENCODER, **CONF, "units": []}
    run(
        tmp_path,
        tmp_path / "exp",
        encoder_conf=conf,
        optim="adam",
        optim_conf={"lr": 1e-3},
        sparsity_scheduler=None,
        sparsity_scheduler_conf={},
        sparsity_constraint=None,
        sparsity_constraint_conf={},
        max_epoch=1,
        num_att_plot=1,
        use_matplotlib=True,
    )
    assert list((tmp_path / "exp/att_ws").rglob("encoder.encoders.0.self_attn*.png"))


def test_a_mask_for_each_query_is_refused():
    x = torch.randn(1, 4, 8).double()
    with pytest.raises(ValueError, match=r"is \(1, 4, 4\); expected \(batch, 1, time\)"):
        attention(4)(x, x, x, torch.ones(1, 4, 4))


def test_macs_grow_with_the_length_and_not_its_square():
    counts = []
    for frames in (100, 200, 400):
        net = attention(16)
        counts.append(net.macs(frames, frames))
    assert counts[1] == 2 * counts[0]
    assert counts[2] == 4 * counts[0]


def test_a_model_trains_and_is_cut():
    net = model(encoder_conf={**CONF, "units": ["heads", "ffn_channels"]})
    loss, _, _ = net(**batch())
    loss.backward()
    layer = net.encoder.encoders[0].self_attn
    assert isinstance(layer, LinearAttention)
    assert layer.linear_q.weight.grad.abs().sum() > 0
    sites = net.encoder.sites()
    plan = plan_of(sites).plain()
    plan["encoders.0.self_attn"]["heads"] = [1, 3]
    decide_(sites, Plan(plan))
    masked = float(net.eval()(**batch())[0])
    counted = budget(net).remaining()
    cut_(net.encoder, sites, Plan(plan))
    assert float(net(**batch())[0]) == pytest.approx(masked, rel=1e-5)
    assert sum(p.numel() for p in net.encoder.parameters()) == round(counted)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"random_features": 0}, "random_features is 0; expected a whole number"),
        (
            {"selfattention_layer_type": "rel_selfattn", "pos_enc_layer_type": "rel_pos"},
            "self_attn is a RelPositionMultiHeadedAttention; expected plain attention",
        ),
        ({"units": ["head_dims"]}, "random_features are drawn for all dimensions"),
    ],
)
def test_what_it_cannot_be(conf, message):
    with pytest.raises(ValueError, match=message):
        model(encoder_conf={**ENCODER, **CONF, **conf})


def test_no_decoder_has_it():
    with pytest.raises(ValueError, match="expected it of an encoder"):
        model(decoder="l0_transformer", decoder_conf={"random_features": 8})
