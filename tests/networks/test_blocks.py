"""What each kind of block says of itself, against what ESPnet's classes are and do."""

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.hooks import ScaleResidual
from espnet_l0prune.core.plan import plan_of
from espnet_l0prune.networks.block import Block, Skip
from espnet_l0prune.networks.blocks import KINDS, block_of
from espnet_l0prune.networks.blocks.decoder import DecoderBlock
from espnet_l0prune.networks.blocks.s3prl import S3prlBlock, WavLMBlock
from espnet_l0prune.networks.blocks.whisper import WhisperBlock
from espnet_l0prune.plugin.network import L0TransducerEncoder
from espnet_l0prune.testing.models import ENCODER, arguments, model

SIZES = {"output_size": 16, "attention_heads": 4, "num_blocks": 1}
MERGES = {**SIZES, "cgmlp_linear_units": 24, "cgmlp_conv_kernel": 5}
FEED_FORWARD = {"linear_units": 12, "use_ffn": True, "macaron_ffn": True}
CONTEXTUAL = {**SIZES, "linear_units": 12}
ENCODERS = {
    "l0_conformer": ENCODER,
    "l0_transformer": {**SIZES, "linear_units": 12},
    "l0_branchformer": MERGES,
    "l0_e_branchformer": {**MERGES, **FEED_FORWARD},
    "l0_contextual_block_conformer": CONTEXTUAL | {"macaron_style": True},
    "l0_contextual_block_transformer": CONTEXTUAL,
}
OF_TRANSDUCERS = ("conformer", "branchformer", "ebranchformer")


def block(kind: str) -> torch.nn.Module:
    """Of a network of that kind, in evaluation mode."""
    args = arguments()
    if kind in OF_TRANSDUCERS:
        sizes = {"hidden_size": 16, "linear_size": 12, "conv_mod_kernel_size": 3}
        encoder = L0TransducerEncoder(20, [{"block_type": kind, **sizes}], units=[])
        return encoder.eval().encoders.blocks[0]
    if kind in ENCODERS:
        args.encoder, args.encoder_conf = kind, {**ENCODERS[kind], "units": []}
    built = ASRTask.build_model(args).eval()
    blocks = built.encoder.encoders if kind in ENCODERS else built.decoder.decoders
    return blocks[0]


@torch.no_grad()
@pytest.mark.parametrize("kind", [*ENCODERS, *OF_TRANSDUCERS, "decoder"])
def test_branches_are_computed_in_the_order_of_the_layout(kind):
    layer = block(kind)
    view, seen = block_of(layer), []
    assert type(view) is not Block
    assert view.branches.keys() == view.layout.keys()
    for name, place in view.branches.items():
        branch, norm = getattr(layer, name), getattr(layer, place.norm)
        norm.register_forward_hook(lambda *_, name=name: seen.append(f"norm of {name}"))
        branch.register_forward_hook(lambda *_, name=name: seen.append(name))
        assert any(isinstance(branch, site.module_types) for site in place.sites)
    x, mask = torch.randn(1, 7, 16), torch.ones(1, 1, 7).bool()
    if kind == "decoder":
        layer(x, mask, torch.randn(1, 9, 16), None)
    elif kind in OF_TRANSDUCERS:  # whose masks are true where there is padding
        layer(x, torch.randn(1, 13, 16), ~mask[0])
    elif kind == "l0_transformer" or "contextual" in kind:
        layer(x, mask)
    else:
        layer((x, torch.randn(1, 13, 16)), mask)
    assert [name for name in seen if name in view.branches] == [*view.branches]
    assert all(seen.index(f"norm of {n}") < seen.index(n) for n in view.branches)


def test_an_unknown_block_has_no_branches():
    assert block_of(torch.nn.Linear(1, 1)).branches == {}


def test_a_block_of_whisper_takes_and_gives_the_stream_alone():
    x, memory, gate = torch.randn(1, 3, 2), torch.randn(1, 4, 2), torch.tensor([0.25])
    skip = WhisperBlock(torch.nn.Identity()).skip()
    assert skip(x, memory, mask=None) is x
    mixed = WhisperBlock.mix(gate, (x, memory), {}, 2 * x)
    assert torch.allclose(mixed, 1.25 * x)


def test_a_skipped_block_of_s3prls_is_still_read():
    x, block, read = torch.randn(3, 1, 2), torch.nn.Identity(), []
    block.register_forward_hook(lambda _, args, output: read.append(args[0]))
    output, (weights, same) = S3prlBlock(block).skip()(x, self_attn_padding_mask=None)
    assert output is same is read[0] is x
    assert weights is None


OTHERS = (WhisperBlock, S3prlBlock, WavLMBlock)  # which return what others do not


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OTHERS])
def test_a_block_that_is_skipped_gives_what_it_takes(kind):
    x, mask = torch.randn(1, 3, 2), torch.ones(1, 1, 3)
    skip = kind(torch.nn.Identity()).skip()
    assert isinstance(skip, Skip)
    assert skip(x, mask, cache=None) == (x, mask)
    assert skip((x, x), mask)[0] == (x, x)
    assert list(skip.parameters()) == []


class Doubling(torch.nn.Module):
    """A block that doubles the stream; what else it is given passes through."""

    def forward(self, x, mask, cache=None):
        if isinstance(x, tuple):
            return (2 * x[0], *x[1:]), mask
        return 2 * x, mask


def test_a_gate_mixes_a_block_with_what_it_read():
    gate, layer = HardConcrete(1), Doubling()
    gate.log_alpha.data.fill_(0.5)
    z, x, mask = gate().double(), torch.randn(2, 3, 4).double(), torch.ones(1)
    assert 0 < z < 1
    ScaleResidual(gate, DecoderBlock).attach_(layer)
    expected = x + z * (2 * x - x)
    out, same = layer(x, mask)
    torch.testing.assert_close(out, expected)
    assert same is mask
    position = torch.randn(1)
    (out, given), same = layer((x, position), mask)
    torch.testing.assert_close(out, expected)
    assert given is position
    assert same is mask
    before = torch.randn(2, 2, 4).double()  # what was decoded, and mixed, so far
    out, _ = layer(x, mask, cache=before)
    torch.testing.assert_close(out, torch.cat([before, expected[:, -1:]], 1))
    out, _ = layer(x, mask, cache=None)
    torch.testing.assert_close(out, expected)


@torch.no_grad()
def test_a_closed_gate_is_the_block_that_is_cut():
    """In the steps of a decoder too, with what it has cached."""
    conf = {"units": ["blocks"], "num_blocks": 2}
    net = model(decoder="l0_transformer", decoder_conf=conf).eval()
    decoder, ys = net.decoder, torch.tensor([[1, 4, 5]])
    memory = torch.randn(1, 9, 16)
    first, _ = decoder.gated_sites()
    first.gates["blocks"].decide_(torch.tensor([False]))

    def steps() -> list[torch.Tensor]:
        found, states = [], [None]
        for length in (1, 2, 3):
            logp, states = decoder.batch_score(ys[:, :length], states, memory)
            found.append(logp)
        return found

    masked = steps()
    cut_(decoder, decoder.sites(), plan_of(decoder.sites()))
    assert [isinstance(layer, Skip) for layer in decoder.decoders] == [True, False]
    skipped = decoder.decoders[0]
    args = memory, None
    assert skipped.forward_partially_AR(*args, cache=None) == skipped(*args)
    for a, b in zip(masked, steps(), strict=True):
        torch.testing.assert_close(a, b)
