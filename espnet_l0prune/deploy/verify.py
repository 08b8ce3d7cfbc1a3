"""Do two encoders compute the same?"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TOLERANCE = 1e-10  # in float64, relative to the output's largest magnitude


@dataclass
class Difference:
    """Largest difference of two outputs, relative to the largest output."""

    float64: float
    float32: float

    def __str__(self) -> str:
        return (
            f"{self.float64:.1e} in float64, {self.float32:.1e} in float32, of the "
            "output's scale"
        )


def probe(
    input_size: int, lengths: tuple[int, ...] = (200, 131, 64, 31), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random features (batch, time, input_size) in float64, and unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths), input_size
    return torch.randn(shape, generator=generator).double(), torch.tensor(lengths)


@torch.no_grad()
def _output(model: nn.Module, feats: Tensor, lengths: Tensor) -> Tensor:
    """The valid frames of the encoder's output, (frames, size)."""
    encoder = model.encoder
    needs_ctc = encoder.interctc_use_conditioning or encoder.ctc_trim
    output, valid, _ = encoder(
        feats, lengths, **({"ctc": model.ctc} if needs_ctc else {})
    )
    if isinstance(output, tuple):  # with intermediate CTC
        output = output[0]
    mask = torch.arange(output.size(1)) < valid[:, None]
    return output[mask]


def compare(masked: nn.Module, cut: nn.Module) -> Difference:
    """Run the encoders of two models in evaluation mode on the same input.

    Raises:
        ValueError: outputs of different shapes
    """
    found = {}
    feats, lengths = probe(masked.encoder.input_size)
    for dtype in (torch.float64, torch.float32):
        pair = [copy.deepcopy(m).to("cpu", dtype).eval() for m in (masked, cut)]
        one, two = (_output(m, feats.to(dtype), lengths) for m in pair)
        if one.shape != two.shape:
            raise ValueError(
                f"the encoders' outputs have shapes {tuple(one.shape)} and "
                f"{tuple(two.shape)}; expected a gated experiment and its cut"
            )
        found[dtype] = float((one - two).abs().max() / one.abs().max())
    return Difference(found[torch.float64], found[torch.float32])


def require_equal(difference: Difference) -> None:
    """Raise ValueError where two encoders do not compute the same."""
    if not difference.float64 <= TOLERANCE:  # NaN is no agreement either
        raise ValueError(
            f"masked and cut networks differ by {difference.float64:.1e} of the "
            f"output's scale in float64; expected at most {TOLERANCE:.0e}. Compare "
            "checkpoints of the same run: the cut model before fine-tuning with the "
            "gated one that it was cut from."
        )
