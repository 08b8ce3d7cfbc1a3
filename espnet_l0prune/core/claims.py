"""Which features of which tensors belong to a unit.

As an example, take an attention of 2 heads with 3 dimensions each, and 4 features in the
stream. Its last layer has a weight of 4 x 6: head u owns the columns 3 u, 3 u + 1 and
3 u + 2 (dim 1, inner 3, outer 1), and dimension d, the same in both heads, the columns d
and 3 + d (dim 1, inner 1, outer 2). What a cut of head 0 and of dimension 2 leaves are
the columns that neither owns: 3 and 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn


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


def output_claims(
    layer: nn.Module, kind: str, inner: int = 1, outer: int = 1, folds: bool = False
) -> Iterator[Claim]:
    """Units own the outputs of a layer, or the features of a norm; arguments as of
    `Claim`."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, name, None) is not None:
            yield Claim(layer, name, 0, kind, inner, outer, folds)


def whole_output_claims(layer: nn.Module, kind: str) -> Iterator[Claim]:
    """One unit owns all that the last layer of a module gives."""
    for claim in output_claims(layer, kind, inner=layer.weight.size(0), folds=True):
        yield replace(claim, whole=True)


def input_claims(
    layer: nn.Module, kind: str, inner: int = 1, outer: int = 1, folds: bool = False
) -> Iterator[Claim]:
    """Units own the inputs of a layer; arguments as of `Claim`."""
    yield Claim(layer, "weight", 1, kind, inner, outer, folds)
