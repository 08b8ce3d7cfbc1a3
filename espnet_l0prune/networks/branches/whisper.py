"""The branches of Whisper's blocks are its attention and its feed-forward network."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.core.sites import Shapes
from espnet_l0prune.networks.branches.attention import HeadsSite
from espnet_l0prune.networks.branches.feed_forward import FeedForwardSite
from espnet_l0prune.networks.espnet_modules import WhisperAttention


class AttentionConstant(Constant):
    """An `AttentionConstant` returns no scores beside its output, as Whisper's does."""

    def forward(self, x: Tensor, *args: Tensor, **kwargs) -> tuple[Tensor, None]:
        """Return (batch, time, size), and None for the scores."""
        return super().forward(x), None


class WhisperAttentionSite(HeadsSite):
    """A `WhisperAttentionSite` is one of Whisper's attentions."""

    module_types = (WhisperAttention,)
    constant_type = AttentionConstant

    @property
    def sizes(self) -> dict[str, int]:
        module, heads, dims = self.kinds
        h = self.module.n_head
        return {module: 1, heads: h, dims: self.module.query.out_features // h}

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        return self.module.query, self.module.key, self.module.value

    @property
    def consumer(self) -> nn.Module:
        return self.module.out

    @property
    def multiplied(self) -> tuple[nn.Module, ...]:
        return (self.module.key,)

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        keys = shapes.get(self.module.key, ())
        for query, key in zip(shapes.get(self.module.query, ()), keys, strict=True):
            batch, queries, size = query.output
            # queries by keys, weights by values
            yield 2 * batch * queries * key.output[1] * size, self.kinds[1:]

    def resize_(self, masks: Mapping[str, Tensor]) -> None:
        self.module.n_head = int(masks[self.kinds[1]].sum())
        self.scale_queries_(masks)


class WhisperSourceAttentionSite(WhisperAttentionSite):
    """A `WhisperSourceAttentionSite` attends to the encoder's output."""

    label = "source_attention"
    kinds = ("src_att_modules", "src_heads", "src_head_dims")
    fine = ("src_head_dims",)
    scaled = ("src_head_dims",)


class WhisperFeedForwardSite(FeedForwardSite):
    """A `WhisperFeedForwardSite` has the channels between two layers in a sequence."""

    module_types = (nn.Sequential,)

    @property
    def gate_holder(self) -> nn.Module:
        return self.consumer  # a sequence would run a gate as one of its layers

    @property
    def first(self) -> nn.Module:
        return self.module[0]

    @property
    def consumer(self) -> nn.Module:
        return self.module[-1]
