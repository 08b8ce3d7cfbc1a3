"""Attention whose time and memory grow with the length, not with its square.

FAVOR+ (Choromanski et al. 2021, arXiv 2009.14794; in Conformers, arXiv 2011.04196). With
x' = x / d^(1/4) and random w ~ N(0, I), in orthogonal sets::

    phi(x) = exp(w^T x' - ||x'||^2 / 2),  E phi(q) phi(k) = exp(q^T k / sqrt(d))

so that phi(Q) (phi(K)^T V), each row divided by that of phi(Q) (phi(K)^T 1), estimates
the softmax attention.
"""

import torch
from torch import Tensor

from espnet_l0prune.networks.espnet_modules import MultiHeadedAttention

LEAST = 1e-6  # added to each feature, so that no row is divided by 0


def orthogonal_gaussian(size: int, count: int) -> Tensor:
    """Random vectors (size, count): each from N(0, I), orthogonal in sets of `size`."""
    q, r = torch.linalg.qr(torch.randn(-(-count // size), size, size))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # uniform on the sphere
    directions = q.transpose(0, 1).flatten(1)[:, :count]
    return directions * torch.randn(size, count).norm(dim=0)


class LinearAttention(MultiHeadedAttention):
    """In place of ESPnet's plain attention, with the same parameters; no dropout.

    Args:
        n_head: number of heads
        n_feat: of their input, all heads together
        features: random vectors w; they are drawn here, once, for all heads
        qk_norm: as ESPnet's
    """

    def __init__(self, n_head: int, n_feat: int, features: int, qk_norm: bool = False):
        super().__init__(n_head, n_feat, 0.0, qk_norm)
        self.register_buffer("projection", orthogonal_gaussian(self.d_k, features))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        expand_kv: bool = False,
    ) -> Tensor:
        """Attend.

        Args:
            query: (batch, time1, n_feat)
            key, value: (batch, time2, n_feat)
            mask: (batch, 1, time2), 0 where there is padding

        Returns:
            (batch, time1, n_feat)

        Raises:
            ValueError: a mask that differs from query to query
        """
        if mask is not None and mask.size(1) != 1:
            raise ValueError(
                f"the attention's mask is {tuple(mask.shape)}; expected (batch, 1, "
                "time): random_features cannot leave out other keys for each query"
            )
        q, k, v = self.forward_qkv(query, key, value, expand_kv)
        there = None if mask is None else mask.unsqueeze(-1) != 0
        # sums over all frames are beyond half precision
        with torch.autocast(v.device.type, enabled=False):
            wide = torch.promote_types(v.dtype, torch.float32)
            q, k = self._features(q.to(wide), k.to(wide), there)
            self._last = None if self.training else (q.detach(), k.detach())
            ones = torch.ones_like(v[..., :1])
            x = q @ (k.transpose(-2, -1) @ torch.cat([v, ones], -1).to(wide))
            x = (x[..., :-1] / x[..., -1:]).to(v.dtype)
        return self.linear_out(x.transpose(1, 2).flatten(2))

    def _features(
        self, q: Tensor, k: Tensor, there: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """phi(Q) and phi(K), (batch, head, time, features), up to factors that cancel out
        in the quotient."""
        q, k = self._exponents(q), self._exponents(k)
        q = (q - q.amax(-1, keepdim=True).detach()).exp() + LEAST
        if there is not None:
            k = k.masked_fill(~there, torch.finfo(k.dtype).min)
        k = (k - k.amax((-2, -1), keepdim=True).detach()).exp() + LEAST
        return q, k if there is None else k * there

    def _exponents(self, x: Tensor) -> Tensor:
        x = x * self.d_k**-0.25
        w = self.projection.to(x.dtype)
        return x @ w - x.square().sum(-1, keepdim=True) / 2

    @property
    def attn(self) -> Tensor | None:
        """The weights of the last forward in evaluation, (batch, head, time1, time2), for
        ESPnet's attention plots; made when they are asked for."""
        if self._last is None:
            return None
        q, k = self._last
        weights = q @ k.transpose(-2, -1)
        return weights / weights.sum(-1, keepdim=True)

    @attn.setter
    def attn(self, _: None) -> None:
        """ESPnet's `__init__` sets None."""
        self._last = None

    def macs(self, queries: int, keys: int) -> int:
        """Multiply-accumulates of one utterance, linear layers aside.

        Args:
            queries, keys: their numbers
        """
        return (queries + keys) * self.h * self.projection.size(1) * (2 * self.d_k + 1)
