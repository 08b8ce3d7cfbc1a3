"""What a site is, and which of its units remain: plain data between the stages.

`Plan` lists the surviving units, `Structure` only counts them, unless their places
matter, as in the residual stream:

    {"encoders.0.self_attn": {"heads": [0, 2]}, ...}    a plan
    {"encoders.0.self_attn": {"heads": 2}, ...}         its structure
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from espnet_l0prune.core.gates import HardConcrete, ScoreOf, log_alpha_of
from espnet_l0prune.core.hooks import (
    GateHook,
    ScaleInput,
    ScaleOutput,
    remove_gates_,
    spread,
)

Plan = dict[str, dict[str, list[int]]]
Structure = dict[str, dict[str, int | list[int]]]
Shapes = dict[nn.Module, list["Call"]]  # of one forward


@dataclass(frozen=True)
class Call:
    """Shapes of what a module took and gave in one forward."""

    inputs: tuple[torch.Size, ...]
    output: torch.Size


@dataclass(frozen=True, eq=False)
class Claim:
    """Units own the features of one dimension of a tensor.

    Unit u of n has the features o n inner + u inner + i, for each o < outer and
    i < inner. The cost, the cut and the folding of gates all follow from the claims.

    Attributes:
        module, tensor: where the parameter or the buffer is, and its name there
        dim: its dimension of size outer * n * inner
        kind: of the units
        folds: the gate multiplies just this, so its value can go into the tensor
        whole: the unit is the module, which goes as one: the tensor is not sliced
    """

    module: nn.Module
    tensor: str
    dim: int
    kind: str
    inner: int = 1
    outer: int = 1
    folds: bool = False
    whole: bool = False


def outputs(
    layer: nn.Module, kind: str, inner: int = 1, outer: int = 1, folds: bool = False
) -> Iterator[Claim]:
    """Units own the outputs of a layer, or the features of a norm; arguments as of
    `Claim`."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, name, None) is not None:
            yield Claim(layer, name, 0, kind, inner, outer, folds)


def whole_output(layer: nn.Module, kind: str) -> Iterator[Claim]:
    """One unit owns all that the last layer of a module gives."""
    for claim in outputs(layer, kind, inner=layer.weight.size(0), folds=True):
        yield replace(claim, whole=True)


def inputs(
    layer: nn.Module, kind: str, inner: int = 1, outer: int = 1, folds: bool = False
) -> Iterator[Claim]:
    """Units own the inputs of a layer; arguments as of `Claim`."""
    yield Claim(layer, "weight", 1, kind, inner, outer, folds)


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


def structure_of(sites: Sequence[Site]) -> Structure:
    """What is left of every site."""
    return {site.name: site.structure() for site in sites}


class Units(NamedTuple):
    """The units of one kind at one site."""

    site: Site
    kind: str


def plan_of(sites: Sequence[Site]) -> Plan:
    """List the units that survive."""
    return make_plan(sites, lambda units: units.site.survivors(units.kind))


def make_plan(sites: Sequence[Site], kept: Callable[[Units], Tensor]) -> Plan:
    """List the units that stay; those without a gate all do.

    Args:
        kept: of units with gates: which of them stay, (units,) bool
    """
    plan: Plan = {}
    for site in sites:
        plan[site.name] = {k: list(range(n)) for k, n in site.sizes.items()}
        for kind in site.gates:
            left = kept(Units(site, kind)).nonzero().flatten().tolist()
            plan[site.name][kind] = left
    return plan


@torch.no_grad()
def decide_(sites: Sequence[Site], plan: Plan) -> None:
    """Fix every gate to 0 or 1 as planned.

    A surviving gate's soft value is folded into the weights first, so that what
    the network computes changes only by the units that the plan closes; and by the
    gates of whole blocks, which have no weight to fold them into.

    Args:
        plan: names every kind of every site that has gates
    """
    for site in sites:
        values, keeps = {}, {}
        for kind, gate in site.gates.items():
            keep = torch.zeros_like(gate.log_alpha, dtype=torch.bool)
            keep[plan[site.name][kind]] = True
            values[kind] = torch.where(keep, gate.values(), 1.0)
            keeps[kind] = keep
        for claim in site.claims():
            if claim.folds and claim.kind in values:
                tensor = getattr(claim.module, claim.tensor)
                shape = [1] * tensor.dim()
                shape[claim.dim] = -1
                z = spread(values[claim.kind], claim.inner, claim.outer)
                tensor.mul_(z.view(shape).to(tensor.dtype))
        for kind, gate in site.gates.items():
            gate.decide_(keeps[kind])


def features_left(
    sites: Sequence[Site], plan: Mapping
) -> tuple[dict[str, dict[str, Tensor]], dict[tuple[nn.Module, str], dict[int, Tensor]]]:
    """What a plan leaves of each site's units, and of each tensor's features.

    Args:
        plan: as `Plan`; sites and kinds that it does not name keep all their units

    Returns:
        by site and kind, which units stay, (units,) bool; by module and tensor, and by
        dimension, which features do, (features,) bool
    """
    kept: dict[str, dict[str, Tensor]] = {}
    left: dict[tuple[nn.Module, str], dict[int, Tensor]] = {}
    for site in sites:
        masks = {}
        for kind, size in site.sizes.items():
            mask = torch.zeros(size, dtype=torch.bool)
            mask[list(plan.get(site.name, {}).get(kind, range(size)))] = True
            masks[kind] = mask
        kept[site.name] = masks
        for claim in site.claims():
            if claim.whole:
                continue
            dims = left.setdefault((claim.module, claim.tensor), {})
            mask = spread(masks[claim.kind], claim.inner, claim.outer)
            dims[claim.dim] = dims.get(claim.dim, True) & mask
    return kept, left


@torch.no_grad()
def cut_(network: nn.Module, sites: Sequence[Site], plan: Mapping) -> None:
    """Keep only the planned units of a network, and remove all its gates, in place.

    Args:
        network: holds the sites
        plan: as `Plan`; sites and kinds that it does not name keep all their units
    """
    kept, left = features_left(sites, plan)
    remove_gates_(network)
    for (module, name), dims in left.items():
        _keep_features_(module, name, dims)
    for module in dict.fromkeys(module for module, _ in left):
        _resize_(module)
    for site in sites:
        site.finish_(kept)


def _keep_features_(module: nn.Module, name: str, dims: Mapping[int, Tensor]) -> None:
    old = tensor = getattr(module, name)
    for dim, mask in dims.items():
        if tensor.dim() > dim and not bool(mask.all()):
            index = mask.nonzero().flatten().to(tensor.device)
            tensor = tensor.index_select(dim, index)
    if tensor is not old:
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor.clone(), requires_grad=old.requires_grad)
        setattr(module, name, tensor)


def _resize_(layer: nn.Module) -> None:
    """Let a layer's attributes say what its tensors are."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        depthwise = layer.groups > 1
        layer.out_channels = layer.weight.size(0)
        layer.in_channels = layer.weight.size(0 if depthwise else 1)
        layer.groups = layer.out_channels if depthwise else 1
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.BatchNorm1d):
        layer.num_features = layer.weight.size(0)
