"""This module has hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312), and a
plainer kind, adaptive dropout.

With noise u ~ U(0, 1), the gate is the stretched and clamped concrete variable

    t = sigmoid((log u - log(1 - u) + log_alpha) / BETA)
    z = clamp(t (RIGHT - LEFT) + LEFT, 0, 1)

so that P(z > 0) = sigmoid(log_alpha - BETA log(-LEFT / RIGHT)). Without noise,
z = clamp(sigmoid(log_alpha) (RIGHT - LEFT) + LEFT, 0, 1).

Adaptive dropout (Kubo et al. 2024, arXiv 2412.04836) draws z from {0, 1} instead, with
P(z = 1) = sigmoid(log_alpha). Its gradient is that of the relaxed variable t.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

LEFT, RIGHT, BETA = -0.1, 1.1, 2 / 3
SHIFT = -BETA * math.log(-LEFT / RIGHT)  # P(z > 0) = sigmoid(log_alpha + SHIFT)
DECIDED = 100.0  # |log_alpha| of a gate fixed to 0 or 1, in any float type
SLOPE = 2.0**-20  # so small that no norm of all gradients, as in clipping, changes by it


class LogAlpha(nn.Parameter):
    """A `LogAlpha` is a gate's parameter; its type tells it from weights."""

    def __reduce_ex__(self, protocol):
        return LogAlpha, (self.data, self.requires_grad)


def _stretch(t: Tensor) -> Tensor:
    return (t * (RIGHT - LEFT) + LEFT).clamp(0, 1)


class HardConcrete(nn.Module):
    """A `HardConcrete` is a vector of gates, one for each unit of a site.

    Args:
        size: number of gates n
        open_probability: P(z > 0) at the start, in [0.982, 1), where the noise-free gate
            is exactly 1, so that a new network is dense
        round_to: how many units close together when units are selected
        uniform: whether all gates of the same kind and size keep the same number of units

    Attributes:
        log_alpha: (n,), in float32 or wider
        sampling: whether the gates are drawn in training mode; in evaluation they never
            are
        measuring: whether log_alpha has the gradient `SLOPE` dL/dz in training, although
            the gate is 1 and would have none; the gates are not drawn then
        noise: the last draw from the logistic distribution, (n,); None before the first
    """

    def __init__(
        self,
        size: int,
        open_probability: float = 0.99,
        round_to: int = 1,
        uniform: bool = False,
    ):
        super().__init__()
        self.open_probability, self.round_to = open_probability, round_to
        self.uniform = uniform
        self.log_alpha = LogAlpha(torch.empty(size))
        self.sampling = self.measuring = False
        self.noise: Tensor | None = None
        self.espnet_initialization_fn()

    shift = SHIFT  # P(z > 0) = sigmoid(log_alpha + shift)
    closed = math.log(-LEFT / RIGHT)  # at or below it the gate without noise is 0

    @staticmethod
    def noise_free(log_alpha: Tensor) -> Tensor:
        """Return gates without noise, in [0, 1]; log_alpha may have any shape."""
        return _stretch(torch.sigmoid(log_alpha))

    @staticmethod
    def noisy(log_alpha: Tensor, noise: Tensor) -> Tensor:
        """Return gates in [0, 1] for noise from the logistic distribution.

        Args:
            log_alpha: a tensor of any shape
            noise: a tensor of the same shape
        """
        return _stretch(torch.sigmoid((noise + log_alpha) / BETA))

    def espnet_initialization_fn(self) -> None:
        """Open all gates; ESPnet calls this after its `init` has reset the model."""
        nn.init.constant_(self.log_alpha, self._start)

    @property
    def _start(self) -> float:
        return self.log_alpha_at(self.open_probability)

    def log_alpha_at(self, probability: float) -> float:
        """Return the log_alpha of a gate that is open with a probability in (0, 1)."""
        return math.log(probability / (1 - probability)) - self.shift

    @property
    def way_to_close(self) -> float:
        """Return how far log_alpha falls until the noise-free gate is 0."""
        return self._start - self.closed

    def is_new(self) -> bool:
        """Return whether every gate is as it was at the start."""
        start = torch.full_like(self.log_alpha, self._start)
        return torch.allclose(self.log_alpha, start, atol=1e-4)

    def probability(self) -> Tensor:
        """Return P(z > 0) of each gate, (n,) in float64."""
        return torch.sigmoid(self.log_alpha.double() + self.shift)

    def values(self) -> Tensor:
        """Return the noise-free gates, (n,) in [0, 1]."""
        return self.noise_free(self.log_alpha)

    def draw_(self) -> None:
        """Draw noise for one forward: every reader of this gate sees the same sample."""
        if self.sampling and self.training:
            u = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
            self.noise = torch.logit(u)

    def forward(self) -> Tensor:
        """Return the gates of this forward, (n,) in [0, 1]: sampled ones in training."""
        if self.measuring and self.training:
            alpha = self.log_alpha
            return self.values().detach() + SLOPE * (alpha - alpha.detach())
        if not (self.sampling and self.training):
            return self.values()
        if self.noise is None:
            self.draw_()
        return self.noisy(self.log_alpha, self.noise)

    def is_open(self) -> Tensor:
        """Return which gates are open in evaluation, (n,) bool."""
        return self.values() > 0

    def is_decided(self) -> bool:
        """Return whether every gate has been fixed to 0 or 1."""
        return bool((self.log_alpha.abs() == DECIDED).all())

    def decided(self, keep: Tensor) -> Tensor:
        """Return the log_alpha of gates that are fixed to 1 where `keep`, (n,) bool, and
        else to 0."""
        return torch.where(keep, DECIDED, -DECIDED).to(self.log_alpha)

    @torch.no_grad()
    def decide_(self, keep: Tensor) -> None:
        """Fix the gates to 1 where `keep`, (n,) bool, is true, and to 0 elsewhere."""
        self.log_alpha.copy_(self.decided(keep))

    def extra_repr(self) -> str:
        return f"{self.log_alpha.numel()}"


class AdaptiveDropout(HardConcrete):
    """An `AdaptiveDropout` is a vector of gates that are 0 or 1 in training too.

    It is dropout whose retention probabilities are learnt, with the straight-through
    gradient of a Gumbel-sigmoid. Without noise a gate is open where it is more likely
    open than not. See `HardConcrete` for the arguments.
    """

    shift = closed = 0.0

    @staticmethod
    def noise_free(log_alpha: Tensor) -> Tensor:
        # the gradient is 0, not None: distributed training waits for every gradient
        return (log_alpha > 0).to(log_alpha) + 0 * log_alpha

    @staticmethod
    def noisy(log_alpha: Tensor, noise: Tensor) -> Tensor:
        relaxed = torch.sigmoid((noise + log_alpha) / BETA)
        drawn = (relaxed > 0.5).to(relaxed)
        return drawn + (relaxed - relaxed.detach())


GATES = {"hard_concrete": HardConcrete, "adaptive_dropout": AdaptiveDropout}


def draw_all(network: nn.Module, *_) -> None:
    """Draw the noise of all gates of a network; this is a forward pre-hook of it."""
    for module in network.modules():
        if isinstance(module, HardConcrete):
            module.draw_()


ScoreOf = Callable[[HardConcrete], Tensor]


def log_alpha_of(gate: HardConcrete) -> Tensor:
    """Return the scores by which units of trained gates are ranked, (n,)."""
    return gate.log_alpha.detach()
