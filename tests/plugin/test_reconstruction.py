"""Which layers reconstruction fits, in every kind of network, and to what."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.reconstruction import reconstruct_
from espnet_l0prune.networks.writers import writers_of
from tests.plugin.networks import KINDS, confs, make, output, relative

SEEDS = range(8)  # of the input, as utterances
SMALL = {"attention_heads": 2, "output_size": 8, "num_blocks": 2, "linear_units": 9}
GATING = {"cgmlp_linear_units": 8, "cgmlp_conv_kernel": 3}
MACARON = {"macaron_style": True, "cnn_module_kernel": 3}


def run(network, utterance):
    return output(network, utterance["seed"])


def fit_(cut, whole, writers) -> None:
    reconstruct_(cut, whole, writers, [{"seed": seed} for seed in SEEDS], run)


def all_writers(network):
    return writers_of(network, network.sites(), Plan({}))


def spoil_(network, layers) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for path in layers:
            for tensor in network.get_submodule(path).parameters():
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor += 0.3 * tensor.abs().mean() * noise


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=list(HealthCheck), max_examples=6)
@given(data=st.data())
def test_layers_that_were_spoiled_are_found_again(kind, data):
    whole = make(kind, data.draw(confs(kind)), [], data.draw(st.integers(0, 9)))
    cut, writers = copy.deepcopy(whole), all_writers(whole)
    spoil_(cut, [writer.layer for writer in writers])
    wanted, spoiled = output(whole), output(cut)
    fit_(cut, whole, writers)
    worst = relative(wanted, spoiled)
    assert relative(wanted, output(cut)) <= 1e-3 * worst + 1e-9


STREAMS = [  # a layer, and the module that reads the stream after it
    ("conformer", MACARON, "feed_forward_macaron.w_2", "norm_mha"),
    ("conformer", MACARON, "self_attn.linear_out", "norm_conv"),
    ("conformer", MACARON, "conv_module.pointwise_conv2", "norm_ff"),
    ("conformer", MACARON, "feed_forward.w_2", "norm_final"),
    ("conformer", {"cnn_module_kernel": 3}, "feed_forward.w_2", "norm_final"),
    ("transformer", {}, "self_attn.linear_out", "norm2"),
    ("transformer", {"normalize_before": False}, "self_attn.linear_out", "norm1"),
    ("transformer", {"normalize_before": False}, "feed_forward.w_2", "norm2"),
    ("branchformer", GATING, "merge_proj", "norm_final"),
    ("branchformer", {**GATING, "use_attn": False}, "cgmlp.channel_proj2", "norm_final"),
    ("e_branchformer", GATING, "merge_proj", "norm_ff"),
    ("e_branchformer", GATING, "feed_forward.w_2", "norm_final"),
    ("decoder", {}, "src_attn.linear_out", "norm3"),
]


@pytest.mark.parametrize(("kind", "changes", "layer", "after"), STREAMS)
def test_the_mean_of_the_stream_after_a_layer_is_the_uncut_one(
    kind, changes, layer, after
):
    conf = {**SMALL, **changes}
    if kind == "branchformer":
        del conf["linear_units"]
    if kind == "e_branchformer":
        conf |= {"use_ffn": True, "macaron_ffn": True}
    whole = make(kind, conf, [], 0)
    cut, writers = copy.deepcopy(whole), all_writers(whole)
    names = [writer.layer for writer in writers]
    blocks = "decoders" if kind == "decoder" else "encoders"
    place = names.index(f"{blocks}.1.{layer}")
    spoil_(cut, names[:place])  # for good: only this layer is fitted
    reader = f"{blocks}.1.{after}"
    before = [mean_at(network, reader) for network in (whole, cut)]
    fit_(cut, whole, writers[place : place + 1])
    found = mean_at(cut, reader)
    assert relative(before[0], before[1]) > 1e-3
    assert relative(before[0], found) <= 1e-9


def mean_at(network, path: str) -> torch.Tensor:
    """The mean of what a module reads, over all frames."""
    seen = []
    module = network.get_submodule(path)
    hook = module.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, -2))
    )
    for seed in SEEDS:
        output(network, seed)
    hook.remove()
    return torch.cat(seen).mean(0)


def test_attention_that_another_layer_joins_to_the_stream_is_left_alone():
    whole = make("transformer", {**SMALL, "concat_after": True}, [], 0)
    fitted = [writer.layer for writer in all_writers(whole)]
    assert "encoders.0.feed_forward.w_2" in fitted
    assert not any("self_attn" in layer for layer in fitted)


def test_a_narrower_stream_is_refused():
    whole = make("conformer", {**SMALL, **MACARON}, [], 0)
    for site, kind in (("stream", "width"), ("encoders.0.stream", "block_width")):
        with pytest.raises(ValueError, match=f"{site} keeps 1 of 8 features of the"):
            writers_of(whole, whole.sites(), Plan({site: {kind: [3]}}))
