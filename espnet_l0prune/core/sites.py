"""Where units are in a network."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim
from espnet_l0prune.core.gates import HardConcrete, ScoreOf, log_alpha_of
from espnet_l0prune.core.hooks import GateHook, ScaleInput, ScaleOutput

Shapes = dict[nn.Module, list["Call"]]  # of one forward


@dataclass(frozen=True)
class Call:
    """Shapes of what a module took and gave in one forward."""

    inputs: tuple[torch.Size, ...]
    output: torch.Size


class Site(ABC):
    """A place in a network where gates attach.

    It is a view: all state is in the modules, so it can be made anew at any time.

    Attributes:
        name: path of the module in the network, e.g. `encoders.0.self_attn`
        kinds: kinds of units that such a site can have
        fine: those of which `round_to` keeps a multiple
        alike: those of which `uniform` keeps as many in every site
        scaled: those whose cut multiplies weights by a factor, which rounds them
        never_empty: those of which not all units can go
    """

    name: str
    kinds: tuple[str, ...]
    fine: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()
    never_empty: tuple[str, ...] = ()

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The module that the site is about; its gates are children of it."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """How many units of each kind there are now."""

    @abstractmethod
    def claims(self) -> Iterator[Claim]:
        """Which features of which tensors the units own."""

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        """Modules that go once all units of any of these kinds are gone."""
        return iter(())

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        """Multiply-accumulates outside linear layers and convolutions.

        Yields the number with all units open, and the kinds that it is proportional to.
        """
        return iter(())

    def hooks(
        self, kind: str, gate: HardConcrete
    ) -> Iterator[tuple[nn.Module, GateHook]]:
        """How the gates of a kind act: by default, where their values can be folded."""
        seen = set()
        for claim in self.claims():
            if claim.kind == kind and claim.folds:
                key = id(claim.module), claim.dim
                if key not in seen:
                    seen.add(key)
                    hook = ScaleInput if claim.dim == 1 else ScaleOutput
                    yield claim.module, hook(gate, claim.inner, claim.outer)

    def part(self, per: str) -> tuple[str, nn.Module] | None:
        """The part of the network that the units belong to alone, in a partition.

        Args:
            per: `block`, or `kind` of module

        Returns:
            the part's name and, with all that is in it, a module of it; None where the
            units reach beyond
        """
        return None

    def protected(self, kind: str, score_of: ScoreOf = log_alpha_of) -> int | None:
        """A unit that stays in any case, where not all of a kind can go: the best one.

        Args:
            score_of: of a gate's units, the higher the better
        """
        return None

    def survivors(self, kind: str) -> Tensor:
        """Which units a cut leaves, (n,) bool: the open ones, or the protected one."""
        opened, stays = self.gates[kind].is_open(), self.protected(kind)
        if stays is not None and not bool(opened.any()):
            opened[stays] = True
        return opened

    def finish_(  # noqa: B027 (most have nothing to mend)
        self, kept: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """After the tensors were cut: mend what else must fit, or drop the module.

        Args:
            kept: for each site's name and each kind, which units stay, (size,) bool
        """

    def structure(self) -> dict[str, int | list[int]]:
        """What is left, in the terms from which the network can be rebuilt."""
        return dict(self.sizes)

    def why_not(self, kind: str) -> str | None:
        """Why units of this kind cannot be pruned here, if they cannot."""
        return None

    @property
    def gates(self) -> dict[str, HardConcrete]:
        """The gates attached, by the kind of unit."""
        found = {kind: getattr(self.module, f"{kind}_gate", None) for kind in self.kinds}
        return {kind: gate for kind, gate in found.items() if gate is not None}

    def attach_(
        self,
        kinds: Iterable[str],
        open_probability: float = 0.99,
        round_to: int = 1,
        uniform: bool = False,
        gate_type: type[HardConcrete] = HardConcrete,
    ) -> None:
        """Give the units of these kinds gates; kinds that are not here are ignored.

        Args:
            open_probability: see `HardConcrete`
            round_to: of the `fine` kinds, keep a multiple of this many units
            uniform: of the `alike` kinds, keep as many units in every site
        """
        for kind in self.kinds:
            size = self.sizes.get(kind, 0)
            if kind not in kinds or not size:
                continue
            multiple = round_to if kind in self.fine else 1
            alike = uniform and kind in self.alike
            gate = gate_type(size, open_probability, multiple, alike)
            self.module.add_module(f"{kind}_gate", gate)
            for layer, hook in self.hooks(kind, gate):
                hook.attach_(layer)


class Units(NamedTuple):
    """The units of one kind at one site."""

    site: Site
    kind: str
