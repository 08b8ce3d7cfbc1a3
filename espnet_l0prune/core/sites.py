"""A site is a place in a network that has units to prune."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim
from espnet_l0prune.core.gates import HardConcrete, ScoreOf, log_alpha_of
from espnet_l0prune.core.hooks import GateHook, ScaleInput, ScaleOutput

Shapes = dict[nn.Module, list["Call"]]  # every call of one forward, by module


@dataclass(frozen=True)
class Call:
    """A `Call` holds the shapes that a module took and returned once."""

    inputs: tuple[torch.Size, ...]
    output: torch.Size


class Site(ABC):
    """A `Site` is a module of a network whose units can have gates.

    It is a view: all state is in the modules, so a site can be made anew at any time.

    Attributes:
        name: path of the module in the network, e.g. `encoders.0.self_attn`
        kinds: the kinds of units that such a site can have
        fine: the kinds of which `round_to` keeps a multiple
        alike: the kinds of which `uniform` keeps the same number in every site
        scaled: the kinds whose cut multiplies weights by a factor, which rounds them
        never_empty: the kinds of which at least one unit must stay
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
        """Return the module that the site is about."""

    @property
    def gate_holder(self) -> nn.Module:
        """Return the module whose children the gates are."""
        return self.module

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return how many units of each kind there are now."""

    @abstractmethod
    def claims(self) -> Iterator[Claim]:
        """Yield which features of which tensors the units own."""

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        """Yield modules and kinds: a module goes once all units of one kind are gone."""
        return iter(())

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        """Yield multiply-accumulates outside linear layers and convolutions.

        Each item is the number with all units open, and the kinds of units to which it is
        proportional.

        Args:
            shapes: the shapes of all calls in one forward
        """
        return iter(())

    def hooks(
        self, kind: str, gate: HardConcrete
    ) -> Iterator[tuple[nn.Module, GateHook]]:
        """Yield the hooks by which a gate acts, each with the layer that it belongs on.

        By default a gate acts where a claim says that its value can be folded.
        """
        seen = set()
        for claim in self.claims():
            if claim.kind == kind and claim.folds:
                key = id(claim.module), claim.dim
                if key not in seen:
                    seen.add(key)
                    hook = ScaleInput if claim.dim == 1 else ScaleOutput
                    yield claim.module, hook(gate, claim.inner, claim.outer)

    def part(self, per: str) -> tuple[str, nn.Module] | None:
        """Return the part of the network to which the units belong alone, if any.

        Args:
            per: what a part is: a `block`, or all modules of a `kind`

        Returns:
            the part's name and a module that holds what belongs to it; None where the
            units reach beyond a part
        """
        return None

    def protected(self, kind: str, score_of: ScoreOf = log_alpha_of) -> int | None:
        """Return the index of the best unit where not all of a kind may go, or else None.

        Args:
            kind: a kind of units with a gate
            score_of: returns the scores of a gate's units, (n,): the higher the better
        """
        return None

    def survivors(self, kind: str) -> Tensor:
        """Return which units a cut leaves, (n,) bool: the open or the protected ones."""
        opened, stays = self.gates[kind].is_open(), self.protected(kind)
        if stays is not None and not bool(opened.any()):
            opened[stays] = True
        return opened

    def finish_(  # noqa: B027 (most have nothing to mend)
        self, kept: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """Mend what the cut of the tensors left unfitting, or replace an emptied module.

        Args:
            kept: which units stay, (size,) bool, by the site's name and the kind
        """

    def structure(self) -> dict[str, int | list[int]]:
        """Return how many units are left, in the form that rebuilds the network."""
        return dict(self.sizes)

    def why_not(self, kind: str) -> str | None:
        """Return why units of this kind cannot be pruned here, or None if they can."""
        return None

    @property
    def gates(self) -> dict[str, HardConcrete]:
        """Return the gates of this site, by the kind of unit."""
        holder = self.gate_holder
        gates = {kind: getattr(holder, f"{kind}_gate", None) for kind in self.kinds}
        return {kind: gate for kind, gate in gates.items() if gate is not None}

    def attach_(
        self,
        kinds: Iterable[str],
        open_probability: float = 0.99,
        round_to: int = 1,
        uniform: bool = False,
        gate_type: type[HardConcrete] = HardConcrete,
    ) -> None:
        """Give the units of some kinds gates; kinds that are not here are ignored.

        Args:
            kinds: kinds of units
            open_probability: see `HardConcrete`
            round_to: keep a multiple of this many units of the `fine` kinds
            uniform: keep the same number of units of the `alike` kinds in every site
            gate_type: the class of the gates
        """
        for kind in self.kinds:
            size = self.sizes.get(kind, 0)
            if kind not in kinds or not size:
                continue
            multiple = round_to if kind in self.fine else 1
            alike = uniform and kind in self.alike
            gate = gate_type(size, open_probability, multiple, alike)
            self.gate_holder.add_module(f"{kind}_gate", gate)
            for layer, hook in self.hooks(kind, gate):
                hook.attach_(layer)


class Units(NamedTuple):
    """`Units` names the units of one kind at one site."""

    site: Site
    kind: str
