"""What a form of a packed model is."""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from espnet_l0prune.deploy.verify import difference_of, outputs, require_equal


@dataclass
class Packed:
    """A model as it is packed.

    Attributes:
        state: of model.pth
        options: of config.yaml
        verify: says how far a model that was loaded is from the experiment's, and raises
            ValueError where that is too far
        packages: that loading it takes, beside ESPnet's
        files: more files in the folder, and what each is
    """

    state: dict[str, Tensor]
    options: argparse.Namespace
    verify: Callable[[nn.Module], str]
    packages: str = ""
    files: dict[str, str] = field(default_factory=dict)


class ExportForm(ABC):
    """A form in which a model is packed.

    Attributes:
        quantizes: whether `int8` is for it
        has_rate: whether its time was measured to grow with the weights
    """

    quantizes = False
    has_rate = True

    @abstractmethod
    def pack(
        self, model: nn.Module, args: argparse.Namespace, folder: Path, int8: bool
    ) -> Packed:
        """Give a model this form.

        Args:
            model: without gates, in evaluation mode
            args: its configuration
            folder: where more files are written
            int8: quantize it
        """


def same_as(model: nn.Module, tolerance: float) -> Callable[[nn.Module], str]:
    """A `Packed.verify`: outputs in float64 are within `tolerance`."""
    expected = outputs(model)
    before = sum(p.numel() for p in model.parameters())

    def verify(loaded: nn.Module) -> str:
        require_equal(difference_of(expected, outputs(loaded)), tolerance)
        after = sum(p.numel() for p in loaded.parameters())
        zeros = f", {after - before:,} of them zeros" if after > before else ""
        return f"{after:,} parameters{zeros}"

    return verify
