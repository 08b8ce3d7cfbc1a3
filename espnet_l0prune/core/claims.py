"""A claim says which features of which tensor belong to a unit.

As an example, take an attention of 2 heads with 3 dimensions each, whose output has 4
features. Its last layer has a weight of 4 x 6: head u owns the columns 3 u, 3 u + 1 and 3
u + 2 (dim 1, inner 3, outer 1), and dimension d, which is the same in both heads, owns
the columns d and 3 + d (dim 1, inner 1, outer 2). Once head 0 and dimension 2 are cut,
the columns that neither owns are left: 3 and 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True, eq=False)
class Claim:
    """A `Claim` says that units own the features of one dimension of a tensor.

    Unit u of n owns the features o n inner + u inner + i, for each o < outer and i <
    inner. The cost, the cut and the folding of gates into weights all follow from the
    claims.

    Attributes:
        module: the module that holds the tensor
        tensor: the name of the parameter or buffer in the module
        dim: the claimed dimension, of size outer * n * inner
        kind: the kind of the units
        inner: how many neighbouring features a unit owns
        outer: how often that is repeated along the dimension
        folds: whether the gate multiplies these features, so that its value can be
            multiplied into the tensor
        whole: whether the unit is the whole module, which goes at once, so that the
            tensor is not sliced
    """

    module: nn.Module
    tensor: str
    dim: int
    kind: str
    inner: int = 1
    outer: int = 1
    folds: bool = False
    whole: bool = False


def output_claims(
    layer: nn.Module, kind: str, inner: int = 1, outer: int = 1, folds: bool = False
) -> Iterator[Claim]:
    """Yield the claims of units that own the outputs of a layer, or a norm's features.

    Args:
        layer: the layer or the norm
        kind, inner, outer, folds: see `Claim`
    """
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, name, None) is not None:
            yield Claim(layer, name, 0, kind, inner, outer, folds)


def whole_output_claims(layer: nn.Module, kind: str) -> Iterator[Claim]:
    """Yield the claims of one unit that owns all outputs of a module's last layer."""
    for claim in output_claims(layer, kind, inner=layer.weight.size(0), folds=True):
        yield replace(claim, whole=True)


def input_claims(
    layer: nn.Module, kind: str, inner: int = 1, outer: int = 1, folds: bool = False
) -> Iterator[Claim]:
    """Yield the claim of units that own the inputs of a layer.

    Args:
        layer: a linear layer or a convolution
        kind, inner, outer, folds: see `Claim`
    """
    yield Claim(layer, "weight", 1, kind, inner, outer, folds)
