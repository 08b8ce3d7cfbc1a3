"""Linear attention takes time and memory that grow with the length, not its square.

It is FAVOR+ (Choromanski et al. 2021, arXiv 2009.14794; in Conformers, arXiv 2011.04196).
With x' = x / d^(1/4) and random w ~ N(0, I), in orthogonal sets::

    phi(x) = exp(w^T x' - ||x'||^2 / 2),  E phi(q) phi(k) = exp(q^T k / sqrt(d))

so that phi(Q) (phi(K)^T V), with each row divided by that of phi(Q) (phi(K)^T 1),
estimates the softmax attention.
"""

import torch
from torch import Tensor

from espnet_l0prune.networks.espnet_modules import MultiHeadedAttention

LEAST = 1e-6  # added to each feature, so that no row is divided by 0


def orthogonal_gaussian(size: int, count: int) -> Tensor:
    """Draw vectors (size, count), each from N(0, I) and orthogonal in sets of `size`."""
    q, r = torch.linalg.qr(torch.randn(-(-count // size), size, size))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # makes q uniform (Haar)
    directions = q.transpose(0, 1).flatten(1)[:, :count]
    return directions * torch.randn(size, count).norm(dim=0)


class LinearAttention(MultiHeadedAttention):
    """This attention replaces ESPnet's plain one; it has its parameters, but no dropout.

    Args:
        n_head: number of heads
        n_feat: number of input features of all heads together
        features: number of random vectors w, which are drawn once, for all heads
        qk_norm: whether queries and keys are normalized, as in ESPnet
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
        """Return the attention's output.

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
        valid = None if mask is None else mask.unsqueeze(-1) != 0
        # half precision is too coarse for sums over all frames
        with torch.autocast(v.device.type, enabled=False):
            wide = torch.promote_types(v.dtype, torch.float32)
            q, k = self._features(q.to(wide), k.to(wide), valid)
            self._last = None if self.training else (q.detach(), k.detach())
            ones = torch.ones_like(v[..., :1])
            x = q @ (k.transpose(-2, -1) @ torch.cat([v, ones], -1).to(wide))
            x = (x[..., :-1] / x[..., -1:]).to(v.dtype)
        return self.linear_out(x.transpose(1, 2).flatten(2))

    def _features(
        self, q: Tensor, k: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return phi(Q) and phi(K), (batch, head, time, features), up to factors that
        cancel in the quotient."""
        q, k = self._exponents(q), self._exponents(k)
        q = (q - q.amax(-1, keepdim=True).detach()).exp() + LEAST
        if valid is not None:
            k = k.masked_fill(~valid, torch.finfo(k.dtype).min)
        k = (k - k.amax((-2, -1), keepdim=True).detach()).exp() + LEAST
        return q, k if valid is None else k * valid

    def _exponents(self, x: Tensor) -> Tensor:
        x = x * self.d_k**-0.25
        w = self.projection.to(x.dtype)
        return x @ w - x.square().sum(-1, keepdim=True) / 2

    @property
    def attn(self) -> Tensor | None:
        """Return the weights of the last evaluation, (batch, head, time1, time2).

        ESPnet's attention plots ask for them; they are not computed before.
        """
        if self._last is None:
            return None
        q, k = self._last
        weights = q @ k.transpose(-2, -1)
        return weights / weights.sum(-1, keepdim=True)

    @attn.setter
    def attn(self, _: None) -> None:
        """Forget the last forward: ESPnet's `__init__` sets None."""
        self._last = None

    def macs(self, queries: int, keys: int) -> int:
        """Return the multiply-accumulates of one utterance outside linear layers.

        Args:
            queries, keys: number of queries and keys
        """
        return (queries + keys) * self.h * self.projection.size(1) * (2 * self.d_k + 1)
