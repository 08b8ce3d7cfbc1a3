"""The residual width can be pruned, for the whole encoder and for each block.

The gates multiply the outputs of the norms, through which all reads of the stream go; the
norms take their statistics over the open features. The branches of a block with a width
of its own also write to these features only. After a cut of the whole width, the front
end's output is gathered, and the output of the last norm is scattered back to full width,
so that positional encodings, decoder and CTC stay as they are.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim, input_claims, output_claims
from espnet_l0prune.core.gates import HardConcrete, ScoreOf, log_alpha_of
from espnet_l0prune.core.hooks import GateHook, SurvivorNorm
from espnet_l0prune.core.narrow import (
    GatherInput,
    GatherOutput,
    ScatterOutput,
    features_of,
)
from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.block import Block
from espnet_l0prune.networks.blocks import block_of
from espnet_l0prune.networks.branch import BranchSite, ConstantSite
from espnet_l0prune.networks.espnet_modules import (
    SUBSAMPLINGS,
    ConvolutionalPositionalEmbedding,
)
from espnet_l0prune.networks.frontend import last_linear

Branch = BranchSite | ConstantSite
STREAM = "stream"  # the name of the whole width's site


def _norms(sites: list[Branch]) -> list[nn.Module]:
    return [site.norm for site in sites if isinstance(site, BranchSite)]


def _writers(block: Block, sites: list[Branch]) -> list[nn.Module]:
    """Return the layers of a block whose outputs are added to the stream."""
    writers = [
        site.module
        # a branch that was only now emptied has no ConstantSite yet
        if isinstance(site, ConstantSite) or isinstance(site.module, Constant)
        else site.consumer
        for site in sites
        if not block.is_merged(site.attribute)
    ]
    return [*writers, block.merge] if block.merge is not None else writers


def _block_claims(
    block: Block, sites: list[Branch], kind: str, folds: bool
) -> Iterator[Claim]:
    """Yield the claims of features of the stream on the layers of a block.

    Args:
        block: the block
        sites: the sites of its branches
        kind: `width` or `block_width`
        folds: whether the gates also multiply what the block writes
    """
    for norm in _norms(sites):
        yield from output_claims(norm, kind, folds=True)
    for site in sites:
        if isinstance(site, BranchSite):
            for reader in site.readers:
                yield from input_claims(reader, kind)
    for writer in _writers(block, sites):
        if not isinstance(writer, Constant):
            yield from output_claims(writer, kind, folds=folds)
        elif writer.value is not None:
            yield Claim(writer, "value", 0, kind, folds=folds)


def open_stream(network: nn.Module) -> Tensor | None:
    """Return the features that an encoder's residual stream has left, (n,).

    It returns None if all of them are left.
    """
    norm, gate = (
        getattr(network, "after_norm", None),
        getattr(network, "width_gate", None),
    )
    if norm is not None and (index := features_of(norm)) is not None:
        return index
    if gate is None or bool((opened := gate() > 0).all()):
        return None
    return opened.nonzero().flatten()


class _WidthSite(Site):
    """A `_WidthSite` has what the two kinds of width share."""

    network: nn.Module

    @property
    def cut_before(self) -> bool:
        return any(features_of(m) is not None for m in self.network.modules())

    def why_not(self, kind: str) -> str | None:
        if self.cut_before:
            return "residual width was cut before, and it can be cut only once"
        if getattr(self.network, "interctc_layer_idx", None):
            return "intermediate CTC reads and writes the full residual stream"
        if not getattr(self.network, "normalize_before", True):
            return "with normalize_before: false the stream is read without a norm"
        if any(block_of(block).reads_beside_attention for block in self.network.encoders):
            return "with concat_after: true the stream is read beside the attention"
        for block in map(block_of, self.network.encoders):
            if block.hands_on:
                return f"its blocks hand on {block.hands_on}, which have all features"
            if block.joined:
                return f"{block.joined} are joined to the stream, with all features"
        embed = self.network.embed
        if embed is None or isinstance(embed, nn.Linear):
            return "without a front end there is no place to take the width up"
        if any(isinstance(m, ConvolutionalPositionalEmbedding) for m in embed.modules()):
            return "a convolutional positional encoding mixes the features of the stream"
        return None

    def hooks(
        self, kind: str, gate: HardConcrete
    ) -> Iterator[tuple[nn.Module, GateHook]]:
        scales = list(super().hooks(kind, gate))
        for layer, _ in scales:
            if isinstance(layer, nn.LayerNorm):
                yield layer, SurvivorNorm([gate])
        yield from scales


class StreamSite(_WidthSite):
    """The `StreamSite` is the width of the whole residual stream.

    Args:
        network: ESPnet's encoder
        blocks: each block, with the sites of its branches
    """

    kinds = ("width",)
    fine = ("width",)
    never_empty = ("width",)
    name = STREAM

    def __init__(self, network: nn.Module, blocks: list[tuple[Block, list[Branch]]]):
        self.network, self.blocks = network, blocks

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def sizes(self) -> dict[str, int]:
        return {"width": self.network.after_norm.weight.numel()}

    def why_not(self, kind: str) -> str | None:
        for block, sites in self.blocks:
            known = {site.attribute for site in sites}
            for attribute in block.branches:
                if attribute not in known:
                    foreign = type(getattr(block.module, attribute)).__name__
                    return f"{attribute} of its blocks, a {foreign}, reads all of it"
        return super().why_not(kind)

    def structure(self) -> dict[str, int | list[int]]:
        norm = self.network.after_norm
        if (index := features_of(norm)) is not None:
            return {"width": index.tolist()}
        return dict(self.sizes)

    def claims(self) -> Iterator[Claim]:
        if self.cut_before:
            return
        if isinstance(self.network.embed, SUBSAMPLINGS):
            yield from output_claims(last_linear(self.network.embed), "width")
        for block, sites in self.blocks:
            yield from _block_claims(block, sites, "width", folds=False)
            if block.final_norm is not None:
                yield from output_claims(block.final_norm, "width", folds=True)
        yield from output_claims(self.network.after_norm, "width", folds=True)

    def protected(self, kind: str, score_of: ScoreOf = log_alpha_of) -> int | None:
        return int(score_of(self.gates[kind]).argmax())

    def finish_(self, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        mask = kept[self.name]["width"]
        if bool(mask.all()):
            return
        network, size = self.network, mask.numel()
        index = mask.nonzero().flatten().to(network.after_norm.weight.device)
        if isinstance(network.embed, SUBSAMPLINGS):
            linear = last_linear(network.embed)
            ScatterOutput(index, size).attach_(linear)
        GatherOutput(index).attach_(network.embed)
        ScatterOutput(index, size).attach_(network.after_norm)
        for block, sites in self.blocks:
            for site in sites:
                merged = block.is_merged(site.attribute)
                if isinstance(site.module, Constant) and not merged:
                    site.module.size = len(index)


class BlockWidthSite(_WidthSite):
    """A `BlockWidthSite` is the width that one block reads and writes.

    Args:
        name: path of the block in the encoder, followed by `.stream`
        network: ESPnet's encoder
        block: the block
        sites: the sites of the block's branches
    """

    kinds = ("block_width",)
    fine = ("block_width",)
    never_empty = ("block_width",)

    def __init__(self, name: str, network: nn.Module, block: Block, sites: list[Branch]):
        self.name, self.network, self.block, self.sites = name, network, block, sites

    @property
    def module(self) -> nn.Module:
        return self.block.module

    def part(self, per: str) -> tuple[str, nn.Module] | None:
        return (
            (self.name.removesuffix(".stream"), self.module) if per == "block" else None
        )

    @property
    def sizes(self) -> dict[str, int]:
        index = self._index()
        return {
            "block_width": self.network.after_norm.weight.numel()
            if index is None
            else len(index)
        }

    def _index(self) -> Tensor | None:
        """Return which features of the stream the block has after a cut of its width."""
        indices = map(features_of, self.module.modules())
        return next((index for index in indices if index is not None), None)

    def structure(self) -> dict[str, int | list[int]]:
        index, norm = self._index(), self.network.after_norm
        if (whole := features_of(norm)) is not None:  # as places in the full width
            index = whole if index is None else whole[index]
        return dict(self.sizes) if index is None else {"block_width": index.tolist()}

    def claims(self) -> Iterator[Claim]:
        if not self.cut_before:
            yield from _block_claims(self.block, self.sites, "block_width", folds=True)

    def protected(self, kind: str, score_of: ScoreOf = log_alpha_of) -> int | None:
        gate = getattr(self.network, "width_gate", None) or self.gates[kind]
        return int(score_of(gate).argmax())

    def survivors(self, kind: str) -> Tensor:
        """Return which of the block's features a cut leaves, (n,) bool.

        These are the features with open gates. Where the gates of the whole width close
        all of them, the feature that is best by those gates stays too, so that the block
        keeps one.
        """
        opened, gate = super().survivors(kind), getattr(self.network, "width_gate", None)
        if gate is not None and not bool((opened & gate.is_open()).any()):
            opened[self.protected(kind)] = True
        return opened

    def finish_(self, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        mask = kept[self.name]["block_width"]
        if bool(mask.all()):
            return
        stream = kept.get(STREAM, {}).get("width", torch.ones_like(mask))
        if bool(mask[stream].all()):
            return
        size = int(stream.sum())
        index = mask[stream].nonzero().flatten().to(self.network.after_norm.weight.device)
        for norm in _norms(self.sites):
            if isinstance(norm, nn.LayerNorm):
                GatherInput(index).attach_(norm)
        for writer in _writers(self.block, self.sites):
            ScatterOutput(index, size).attach_(writer)
            if isinstance(writer, Constant):
                writer.size = len(index)
