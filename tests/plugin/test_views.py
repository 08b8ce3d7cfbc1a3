"""Two views of each utterance learn from each other (consistency regularization)."""

import pytest
import torch
import torch.nn.functional as F
from espnet2.asr.specaug.specaug import SpecAug

from espnet_l0prune.core.distillation import consistency_kl
from espnet_l0prune.networks.views import in_two_views, warped_alike
from espnet_l0prune.report.history import read_history
from espnet_l0prune.testing.models import model
from espnet_l0prune.testing.runs import final, make_data, run
from espnet_l0prune.testing.updates import batch
from tests.plugin.test_disturbed import heard, student

MASKS = {"specaug": "specaug", "specaug_conf": {"time_mask_width_range": [0, 9]}}
WARPS = {"apply_freq_mask": False, "apply_time_mask": False}


def test_the_divergence_is_that_of_each_utterance_both_ways():
    torch.manual_seed(0)
    logits, lengths = torch.randn(6, 7, 5).double(), torch.tensor([7, 4, 1] * 2)
    expected = torch.zeros(()).double()
    for i, n in enumerate(lengths[:3]):
        one, two = (F.softmax(logits[j, :n], -1) for j in (i, 3 + i))
        expected = expected + 0.5 * ((one - two) * (one / two).log()).sum()
    torch.testing.assert_close(consistency_kl(logits, lengths), expected / 3)


def test_each_view_is_a_target_without_gradient():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4).double().requires_grad_()
    lengths = torch.tensor([3, 3])
    consistency_kl(logits, lengths).backward()
    # of cross-entropy with a fixed target: softmax minus target
    one, two = logits.detach().softmax(-1)
    expected = 0.5 * torch.stack([one - two, two - one])
    torch.testing.assert_close(logits.grad, expected)
    alike = in_two_views(logits.detach()[:1]).requires_grad_()
    loss = consistency_kl(alike, lengths)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(alike.grad, torch.zeros_like(alike))


@pytest.mark.parametrize("lengths", [[80, 61, 47], [80, 80, 80], None])
def test_both_views_are_warped_alike(lengths):
    specaug = SpecAug(time_warp_window=20, **WARPS)
    x = in_two_views(torch.randn(3, 80, 20))
    counts = None if lengths is None else torch.tensor(lengths * 2)
    alone = x.clone()
    with warped_alike(specaug):
        y, found = specaug(x.clone(), counts)
    assert torch.equal(y[:3], y[3:])
    assert y.shape == alone.shape
    assert not torch.equal(y, alone)
    assert found is counts is None or torch.equal(found, counts)
    assert not specaug.time_warp._forward_hooks
    assert not specaug.time_warp._forward_pre_hooks


def test_augmentations_without_a_warp_are_left_alone():
    x = torch.ones(2, 80, 20)
    with warped_alike(None), warped_alike(torch.nn.Identity()):
        specaug = SpecAug(apply_time_warp=False, time_mask_width_range=[0, 9])
        with warped_alike(specaug):
            assert specaug(x.clone(), torch.tensor([80, 80]))[0].shape == x.shape


def losses(net, seed: int = 3) -> dict[str, float]:
    torch.manual_seed(seed)
    loss, stats, weight = net(**batch())
    found = {name: float(value) for name, value in stats.items() if value is not None}
    return found | {"total": float(loss.detach()), "weight": float(weight)}


def test_the_loss_is_the_mean_of_both_views_and_their_divergence():
    """Without dropout and masks both views are one, and nothing is added to the loss."""
    conf = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    conf |= {"positional_dropout_rate": 0.0}
    still = {"encoder_conf": conf, "decoder_conf": {"dropout_rate": 0.0}}
    still["decoder_conf"] |= dict.fromkeys(
        ("positional_dropout_rate", "src_attention_dropout_rate"), 0.0
    )
    still["decoder_conf"]["self_attention_dropout_rate"] = 0.0
    plain = losses(model(**still).train())
    both = losses(model(model_conf={"cr_ctc_weight": 0.2}, **still).train())
    assert both["loss_cr_ctc"] == pytest.approx(0, abs=1e-6)
    for name in ("loss", "total", "loss_ctc", "loss_att"):
        assert both[name] == pytest.approx(plain[name], rel=1e-5), name
    assert both["weight"] == 2 * plain["weight"]

    masked = model(model_conf={"cr_ctc_weight": 0.2}, **MASKS, **still).train()
    found = losses(masked)
    assert found["loss_cr_ctc"] > 1e-3
    total = found["loss_task"] + 0.2 * found["loss_cr_ctc"]
    assert found["total"] == pytest.approx(total, rel=1e-5)


def test_validation_sees_each_utterance_once():
    net = model(model_conf={"cr_ctc_weight": 0.2}, **MASKS).eval()
    plain = model(**MASKS).eval()
    expected, found = losses(plain), losses(net)
    assert "loss_cr_ctc" not in found
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("disturbed", [0.0, 1e-12])
def test_the_teacher_sees_both_views_as_the_student_does(disturbed, tmp_path):
    net = student(tmp_path / "dense", disturbed)
    net.cr_ctc_weight = 0.2
    mine, its, stats = heard(net)
    assert len(mine) == 6
    assert torch.equal(mine, its)
    assert not torch.equal(mine[:3], mine[3:])
    assert float(stats["loss_cr_ctc"]) > 0


def test_espnet_trains_in_two_views(tmp_path):
    """Its batches also have the utterances' names."""
    make_data(tmp_path)
    conf = {"model_conf": {"ctc_weight": 0.3, "cr_ctc_weight": 0.2}, **MASKS}
    run(tmp_path, tmp_path / "exp", **conf)
    epochs, _ = read_history(tmp_path / "exp")
    assert all(epoch.train["loss_cr_ctc"] > 0 for epoch in epochs)
    assert all("loss_cr_ctc" not in epoch.valid for epoch in epochs)
    state = final(tmp_path / "exp")["optimizers"][0]["param_groups"]
    assert any("settings" in group for group in state)


def test_it_needs_ctc():
    with pytest.raises(ValueError, match=r"cr_ctc_weight is 0\.2; expected 0, as this"):
        model(model_conf={"ctc_weight": 0.0, "cr_ctc_weight": 0.2})
