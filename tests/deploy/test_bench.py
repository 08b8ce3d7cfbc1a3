import torch

from espnet_l0prune.deploy.bench import encoder_macs, real_time_factors
from espnet_l0prune.testing.models import model, whole

PLAIN = {"units": [], "output_size": 8, "attention_heads": 2, "linear_units": 6}
WAVE = {"input_size": None, "frontend": "default", "frontend_conf": {"fs": 16000}}


def net(structure=None):
    conf = {**PLAIN, "num_blocks": 1}
    if structure:
        conf["structure"] = whole(net().encoder, structure)
    return model(encoder_conf=conf, **WAVE)


def test_macs_fall_by_what_was_cut():
    """Linear layers and convolutions of what is gone, by hand."""
    dense = encoder_macs(net(), 1.0, 16_000)
    with torch.no_grad():
        encoded, _ = net().eval().encode(torch.zeros(1, 16000), torch.tensor([16000]))
    frames = encoded.size(1)
    cut = encoder_macs(net({"encoders.0.feed_forward": {"ffn_channels": 2}}), 1.0, 16_000)
    assert dense - cut == frames * 2 * 8 * (6 - 2)
    empty = encoder_macs(
        net({"encoders.0.feed_forward": {"ffn_channels": 0}}), 1.0, 16_000
    )
    assert dense - empty == frames * 2 * 8 * 6
    one_head = encoder_macs(net({"encoders.0.self_attn": {"heads": 1}}), 1.0, 16_000)
    positions = 2 * frames - 1
    d_k, size = 4, 8
    linear = frames * size * d_k * 4 + positions * size * d_k
    scores = frames * d_k * (frames + positions + frames)
    assert dense - one_head == linear + scores


def test_real_time_factors_leave_the_threads_alone():
    threads = torch.get_num_threads()
    found = real_time_factors({"a": net()}, [torch.zeros(8000)], 16000, rounds=1)
    assert found["a"] > 0
    assert torch.get_num_threads() == threads
