"""The branches of HuBERT's, wav2vec 2.0's and WavLM's blocks, as s3prl has them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim
from espnet_l0prune.core.gates import ScoreOf, log_alpha_of
from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.core.sites import Shapes
from espnet_l0prune.networks.block import Block
from espnet_l0prune.networks.branches.attention import HeadsSite
from espnet_l0prune.networks.branches.feed_forward import FeedForwardSite
from espnet_l0prune.networks.s3prl import head_places
from espnet_l0prune.networks.s3prl_modules import S3prlAttention, WavLMAttention


class SelfAttentionConstant(Constant):
    """A `SelfAttentionConstant` is called as HuBERT's attention is."""

    def forward(  # type: ignore[override]  # its caller names what it gives
        self, query: Tensor, *args: Any, **kwargs: Any
    ) -> tuple:
        """Return (time, batch, size), and None for the weights."""
        return super().forward(query), None


class RelativeConstant(Constant):
    """A `RelativeConstant` is called as WavLM's attention is."""

    def forward(  # type: ignore[override]
        self, query: Tensor, *_: Any, position_bias: Tensor | None = None, **__: Any
    ) -> tuple:
        """Return (time, batch, size), None for the weights, and the positions."""
        return super().forward(query), None, position_bias


class SelfSupervisedAttentionSite(HeadsSite):
    """A `SelfSupervisedAttentionSite` is the attention of HuBERT and wav2vec 2.0."""

    module_types: tuple[type[nn.Module], ...] = (S3prlAttention,)
    constant_type: type[Constant] = SelfAttentionConstant

    @property
    def sizes(self) -> dict[str, int]:
        module, heads, dims = self.kinds
        h = self.module.num_heads
        return {module: 1, heads: h, dims: self.module.q_proj.out_features // h}

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        return self.module.q_proj, self.module.k_proj, self.module.v_proj

    @property
    def consumer(self) -> nn.Module:
        return self.module.out_proj

    @property
    def multiplied(self) -> tuple[nn.Module, ...]:
        return (self.module.k_proj,)

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        for call in shapes.get(self.module.q_proj, ()):
            time, batch, size = call.output
            # queries by keys, weights by values
            yield 2 * batch * time * time * size, self.kinds[1:]

    def resize_(self, masks: Mapping[str, Tensor]) -> None:
        self.module.num_heads = int(masks[self.kinds[1]].sum())
        self.scale_queries_(masks)


class RelativeAttentionSite(SelfSupervisedAttentionSite):
    """A `RelativeAttentionSite` is the attention of WavLM.

    The first one also computes the relative positions of all, so it stays. A structure
    lists the heads, since each adds its own positions.
    """

    module_types = (WavLMAttention,)
    constant_type = RelativeConstant

    def __init__(self, name: str, block: Block, attribute: str):
        super().__init__(name, block, attribute)
        if self.module.has_relative_attention_bias:
            self.never_empty = self.kinds

    def protected(self, kind: str, score_of: ScoreOf = log_alpha_of) -> int | None:
        if kind in self.never_empty:
            return int(score_of(self.gates[kind]).argmax())
        return None

    def why_not(self, kind: str) -> str | None:
        if kind == self.kinds[2] and self.module.gru_rel_pos:
            return "what weighs its relative positions does not shrink with dimensions"
        return None

    def structure(self) -> dict[str, int | list[int]]:
        return {**super().structure(), self.kinds[1]: head_places(self.module)}

    def unit_claims(self) -> Iterator[Claim]:
        yield from super().unit_claims()
        if self.module.gru_rel_pos:
            yield Claim(self.module, "grep_a", 1, self.kinds[1])

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        yield from super().dependents()
        if self.module.gru_rel_pos:
            yield self.module.grep_linear, self.kinds

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        yield from super().macs(shapes)
        if self.module.gru_rel_pos:
            shares = self.module.num_heads * self.module.grep_linear.weight.numel()
            for call in shapes.get(self.module.q_proj, ()):
                yield math.prod(call.output[:2]) * shares, self.kinds[1:2]

    def resize_(self, masks: Mapping[str, Tensor]) -> None:
        kept, places = masks[self.kinds[1]].tolist(), head_places(self.module)
        self.module.places = [
            place for place, stays in zip(places, kept, strict=True) if stays
        ]
        super().resize_(masks)


class SelfSupervisedFeedForwardSite(FeedForwardSite):
    """A `SelfSupervisedFeedForwardSite` has the channels between two layers of a block.

    Once it is emptied the first layer stays, without outputs.
    """

    module_types = (nn.Linear,)

    @property
    def first(self) -> nn.Module:
        return self.block.module.fc1

    @property
    def consumer(self) -> nn.Module:
        return self.module

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        yield from super().dependents()
        yield self.first, self.kinds[:1]

    def finish_(self, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().finish_(kept)
        if isinstance(self.module, Constant):
            self.first.out_features = 0
            for name in ("weight", "bias"):
                none = getattr(self.first, name).detach()[:0].clone()
                setattr(self.first, name, nn.Parameter(none))
