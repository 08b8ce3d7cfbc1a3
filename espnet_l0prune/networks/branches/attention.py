"""The attention branch is ESPnet's MultiHeadedAttention or a relative-position kind."""

import math
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim, input_claims, output_claims
from espnet_l0prune.core.sites import Shapes
from espnet_l0prune.networks.branch import BranchSite
from espnet_l0prune.networks.espnet_modules import MultiHeadedAttention
from espnet_l0prune.networks.linear_attention import LinearAttention


class HeadsSite(BranchSite):
    """A `HeadsSite` has the heads of an attention, and dimensions inside them.

    A dimension is cut from the queries, keys and values of all heads together, since a
    forward has one number of them for all heads, and divides the scores by its root.
    """

    label = "attention"
    kinds: tuple[str, ...] = ("att_modules", "heads", "head_dims")
    fine = ("head_dims",)
    scaled = ("head_dims",)

    @property
    def multiplied(self) -> tuple[nn.Module, ...]:
        """Return the layers by whose outputs the queries are multiplied, for scores."""
        raise NotImplementedError

    def unit_claims(self) -> Iterator[Claim]:
        _, heads, dims = self.kinds
        h, d_k = self.sizes[heads], self.sizes[dims]
        for layer in dict.fromkeys((*self.readers, *self.multiplied)):
            folds = layer in self.multiplied
            yield from output_claims(layer, heads, inner=d_k)
            yield from output_claims(layer, dims, outer=h, folds=folds)
        yield from input_claims(self.consumer, heads, inner=d_k, folds=True)
        yield from input_claims(self.consumer, dims, outer=h, folds=True)

    def scale_queries_(self, masks: Mapping[str, Tensor]) -> float:
        """Return by what the scores are too small once dimensions are cut, and multiply
        the layer of the queries by it: the model divided by the old number's root."""
        scale = float(masks[self.kinds[2]].double().mean().sqrt())
        if scale != 1:
            queries = self.readers[0]
            queries.weight.mul_(scale)
            queries.bias.mul_(scale)
        return scale


class AttentionSite(HeadsSite):
    """An `AttentionSite` is one of ESPnet's attentions."""

    module_types: tuple[type[nn.Module], ...] = (MultiHeadedAttention,)
    heads_name = "h"  # the attribute that has the number of heads

    @property
    def sizes(self) -> dict[str, int]:
        module, heads, dims = self.kinds
        h = getattr(self.module, self.heads_name)
        return {module: 1, heads: h, dims: self.module.d_k}

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        return self.module.linear_q, self.module.linear_k, self.module.linear_v

    @property
    def consumer(self) -> nn.Module:
        return self.module.linear_out

    @property
    def norm_is_shared(self) -> bool:
        return super().norm_is_shared or self.block.reads_beside_attention

    @property
    def _norms(self) -> list[nn.Module]:
        """Return the norms of queries and keys, if there are any."""
        norms = (getattr(self.module, name, None) for name in ("q_norm", "k_norm"))
        return [norm for norm in norms if not isinstance(norm, nn.Identity | None)]

    @property
    def _positions(self) -> nn.Module | None:
        return getattr(self.module, "linear_pos", None)

    @property
    def multiplied(self) -> tuple[nn.Module, ...]:
        keys, positions = self.module.linear_k, self._positions
        return (keys,) if positions is None else (keys, positions)

    def unit_claims(self) -> Iterator[Claim]:
        yield from super().unit_claims()
        _, heads, dims = self.kinds
        for name in ("pos_bias_u", "pos_bias_v"):
            if hasattr(self.module, name):
                yield Claim(self.module, name, 0, heads)
                yield Claim(self.module, name, 1, dims)

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        yield from super().dependents()
        for norm in self._norms:
            yield norm, self.kinds

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        for call in shapes.get(self.module, ()):
            batch, queries = call.inputs[0][:2]
            keys, size = call.inputs[1][1], math.prod(self.sizes.values())
            if isinstance(self.module, LinearAttention):
                yield batch * self.module.macs(queries, keys), self.kinds[1:2]
                continue
            products = 2 * keys  # queries by keys, weights by values
            if self._positions is not None:
                products += call.inputs[3][1]  # queries by positions
            yield batch * queries * products * size, self.kinds[1:]

    def resize_(self, masks: Mapping[str, Tensor]) -> None:
        attention, (_, heads, dims) = self.module, self.kinds
        setattr(attention, self.heads_name, int(masks[heads].sum()))
        attention.d_k = int(masks[dims].sum())
        scale = self.scale_queries_(masks)
        for name in ("pos_bias_u", "pos_bias_v"):
            if scale != 1 and hasattr(attention, name):
                getattr(attention, name).mul_(scale)

    def why_not(self, kind: str) -> str | None:
        if kind == self.kinds[2] and self._norms:
            return "qk_norm normalizes over all dimensions of a head"
        if kind == self.kinds[2] and isinstance(self.module, LinearAttention):
            return "random_features are drawn for all dimensions of a head"
        return None


class SourceAttentionSite(AttentionSite):
    """A `SourceAttentionSite` is an attention to another network's output: a decoder's to
    the encoder's, or OWSM-CTC's to that of the prompt's encoder."""

    label = "source_attention"
    kinds = ("src_att_modules", "src_heads", "src_head_dims")
    fine = ("src_head_dims",)
    scaled = ("src_head_dims",)
