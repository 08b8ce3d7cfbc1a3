"""This is the interface of the forms in which a model can be packed."""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from espnet_l0prune.deploy.verify import difference_of, outputs, require_equal


@dataclass
class Packed:
    """A `Packed` is a model in the form in which it is packed.

    Attributes:
        state: the weights that model.pth holds
        options: the options that config.yaml holds
        verify: returns in words how far a loaded model is from the experiment's, and
            raises ValueError where that is too far
        packages: the packages that loading it needs in addition to ESPnet's
        files: names of further files in the folder, with what each is
    """

    state: dict[str, Tensor]
    options: argparse.Namespace
    verify: Callable[[nn.Module], str]
    packages: str = ""
    files: dict[str, str] = field(default_factory=dict)


class ExportForm(ABC):
    """An `ExportForm` is a form in which a model is packed.

    Attributes:
        quantizes: whether the form can be quantized to `int8`
        has_rate: whether the time it takes grows with the weights, as was measured
    """

    quantizes = False
    has_rate = True

    @abstractmethod
    def pack(
        self, model: nn.Module, args: argparse.Namespace, folder: Path, int8: bool
    ) -> Packed:
        """Bring a model into this form.

        Args:
            model: the model, without gates and in evaluation mode
            args: its configuration
            folder: the folder for further files
            int8: whether to quantize the model
        """


def same_as(model: nn.Module, tolerance: float) -> Callable[[nn.Module], str]:
    """Return a `Packed.verify` that demands outputs in float64 within a tolerance."""
    expected = outputs(model)
    before = sum(p.numel() for p in model.parameters())

    def verify(loaded: nn.Module) -> str:
        require_equal(difference_of(expected, outputs(loaded)), tolerance)
        after = sum(p.numel() for p in loaded.parameters())
        zeros = f", {after - before:,} of them zeros" if after > before else ""
        return f"{after:,} parameters{zeros}"

    return verify
