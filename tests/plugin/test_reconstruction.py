"""Which layers reconstruction fits, in every kind of network, and to what."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.reconstruction import reconstruct_
from espnet_l0prune.networks.writers import writers_of
from tests.plugin.networks import (
    KINDS,
    confs,
    draw_plan,
    make,
    output,
    prunable,
    relative,
)

FITTED = [kind for kind in KINDS if kind != "speakers"]  # which is refused
SEEDS = range(8)  # of the input, as utterances
SMALL = {"attention_heads": 2, "output_size": 8, "num_blocks": 2, "linear_units": 9}
GATING = {"cgmlp_linear_units": 8, "cgmlp_conv_kernel": 3}
MACARON = {"macaron_style": True, "cnn_module_kernel": 3}


def run(network, utterance):
    return output(network, utterance["seed"])


def fit_(cut, whole, writers) -> None:
    # OWSM-CTC's front end leaves an eighth of the frames, others a fourth and more
    times = 4 if isinstance(whole, KINDS["e_branchformer_ctc"]) else 1
    seeds = range(times * len(SEEDS))
    reconstruct_(cut, whole, writers, [{"seed": seed} for seed in seeds], run)


def all_writers(network):
    return writers_of(network, network.sites(), Plan({}))


def spoil_(network, layers) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for path in layers:
            for tensor in network.get_submodule(path).parameters():
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor += 0.3 * tensor.abs().mean() * noise


@pytest.mark.parametrize("kind", FITTED)
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


def of_plan(kind: str, conf: dict, plan: Plan, seed: int = 0):
    """A network, what a plan leaves of it, and the writers between them."""
    whole = make(kind, conf, [], seed)
    cut, writers = copy.deepcopy(whole), writers_of(whole, whole.sites(), plan)
    cut_(cut, cut.sites(), plan)
    return whole, cut, writers


@pytest.mark.parametrize("kind", FITTED)
@settings(suppress_health_check=list(HealthCheck), max_examples=6)
@given(data=st.data())
def test_every_cut_network_can_be_fitted(kind, data):
    """Whatever is left of it, and nothing but the writers changes."""
    conf = data.draw(confs(kind))
    units = [u for u in prunable(kind, conf) if "width" not in u]
    plan = draw_plan(data, make(kind, conf, units, 0))
    whole, cut, writers = of_plan(kind, conf, plan)
    before = {name: w.clone() for name, w in cut.state_dict().items()}
    fit_(cut, whole, writers)
    after = cut.state_dict()
    assert all(bool(w.isfinite().all()) for w in after.values() if w.is_floating_point())
    fitted = {w.layer for w in writers} | {w.branch for w in writers}
    for name, weight in after.items():
        same = torch.equal(weight, before[name])
        assert same or name.rpartition(".")[0] in fitted, name


@pytest.mark.parametrize("kind", ["conformer", "e_branchformer", "branchformer"])
def test_front_end_channels_that_repeat_others_are_missed_by_nobody(kind):
    """Whichever they are: those that stay are not the first ones."""
    conf = {**SMALL, **GATING}
    if kind != "e_branchformer":
        del conf["linear_units"]
    if kind == "conformer":
        conf = {**SMALL, "cnn_module_kernel": 3}
    whole = make(kind, conf, [], 0)
    stays = [1, 3, 4, 7]
    twins = [3, 1, 1, 3, 4, 7, 4, 7]  # of each channel, the one that stays
    with torch.no_grad():
        for conv in (whole.embed.conv[0], whole.embed.conv[2]):
            conv.weight.copy_(conv.weight[twins])
            conv.bias.copy_(conv.bias[twins])
    names = [site.name for site in whole.sites() if "frontend_channels" in site.kinds]
    plan = Plan({name: {"frontend_channels": stays} for name in names})
    cut, writers = copy.deepcopy(whole), writers_of(whole, whole.sites(), plan)
    cut_(cut, cut.sites(), plan)
    lost = relative(output(whole), output(cut))
    fit_(cut, whole, writers)
    assert lost > 1e-2
    assert relative(output(whole), output(cut)) <= 1e-4 * lost


@pytest.mark.parametrize("kind", ["whisper", "whisper_decoder"])
def test_an_emptied_attention_of_whispers_is_made_up_for(kind):
    conf = {"attention_heads": 2, "output_size": 8, "num_blocks": 2}
    cross = kind == "whisper_decoder"
    blocks = "decoders.blocks" if cross else "encoders.blocks"
    branch, heads = ("cross_attn", "src_heads") if cross else ("attn", "heads")
    plan = Plan({f"{blocks}.0.{branch}": {heads: []}})
    whole, cut, writers = of_plan(kind, conf, plan)
    lost = relative(output(whole), output(cut))
    fit_(cut, whole, writers)
    assert relative(output(whole), output(cut)) < lost


def test_the_next_block_makes_up_for_one_that_was_cut():
    whole, cut, writers = of_plan(
        "conformer", {**SMALL, **MACARON}, Plan({"encoders.0": {"blocks": []}})
    )
    lost = relative(output(whole), output(cut))
    fit_(cut, whole, writers)
    assert relative(output(whole), output(cut)) < 0.5 * lost


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
