"""Reconstruction fits layers of a cut network to the uncut one, in closed form.

Without its cut units, each layer that read them writes something else into the residual
stream, and all that comes later reads a stream that has gone astray. So these layers are
fitted one after the other, from front to back: each such that the stream after it is, on
some utterances, as near as possible to that of the uncut network. A layer is linear in
its weights, so this is a least-squares problem, with a ridge on how far the weights move.

The local least squares of post-training pruning, such as those of optimal brain
compression (Frantar and Alistarh 2022, arXiv 2208.11580), give a layer what it wrote
before, and leave the stream astray.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.core.steps import Step, quiet

RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
HELD_OUT = 4  # each fourth utterance chooses the ridge
Utterance = Mapping[str, Tensor]  # a batch of one, as keyword arguments of ESPnet's model
Run = Callable[[nn.Module, Utterance], object]  # runs a model on an utterance


@dataclass(frozen=True)
class Writer:
    """A `Writer` names a layer that reads units, and what its output is added to.

    Attributes:
        layer: path of the linear layer or the convolution in the uncut model
        branch: path of the module in whose place a `Constant` stands if it was emptied
        reader: path of the module that reads the stream just before the layer writes to
            it; None for a layer whose output is added to nothing
        factor: by what the output is multiplied before it is added
        kept: which of the layer's outputs the cut model has, (outputs,) bool; None if it
            has all of them
    """

    layer: str
    branch: str
    reader: str | None = None
    factor: float = 1.0
    kept: Tensor | None = None


@dataclass
class Moments:
    """The `Moments` of some rows of inputs X and residuals R are sums over rows.

    Attributes:
        xx: X' X, (inputs, inputs)
        xr: X' R, (inputs, outputs)
        rr: sum of squares of R
        rows: number of rows
    """

    xx: Tensor
    xr: Tensor
    rr: float = 0.0
    rows: int = 0

    @classmethod
    def of_none(cls, x: Tensor, r: Tensor) -> "Moments":
        """Return the moments of no rows, of the sizes of x and r; see `add_`."""
        return cls(x.new_zeros(x.size(1), x.size(1)), x.new_zeros(x.size(1), r.size(1)))

    def add_(self, x: Tensor, r: Tensor) -> None:
        """Add rows: x, (rows, inputs), and r, (rows, outputs)."""
        self.xx.addmm_(x.T, x)
        self.xr.addmm_(x.T, r)
        self.rr += float(r.square().sum())
        self.rows += len(x)

    def merge_(self, other: "Moments") -> None:
        """Add the rows of others."""
        self.xx += other.xx
        self.xr += other.xr
        self.rr += other.rr
        self.rows += other.rows

    def error(self, change: Tensor | None = None) -> float:
        """Return the mean square of R - X C over all rows and outputs.

        Args:
            change: C, (inputs, outputs); None for zeros
        """
        moved = 0.0
        if change is not None:
            moved = float((change * (self.xx @ change - 2 * self.xr)).sum())
        return max(0.0, self.rr + moved) / (self.rows * self.xr.size(1))

    def solve(self, ridge: float, intercept: bool) -> Tensor:
        """Return the C with the smallest sum of squares of R - X C and sqrt(ridge) D C.

        D is the diagonal matrix of the roots of the columns' sums of squares, so that the
        scales of inputs do not matter.

        Args:
            ridge: the weight of C's own size
            intercept: whether the last input is a constant 1, whose row of C is free
        """
        penalized = self.xx.clone()
        sums = self.xx.diagonal()
        penalty = ridge * sums.clamp(min=1e-12 * float(sums.max()))
        if intercept:
            penalty[-1] = 0
        penalized.diagonal().add_(penalty)
        return torch.linalg.solve(penalized, self.xr)


class _Reached(BaseException):
    """The layer that is watched has been run, and nothing after it is needed.

    ESPnet catches every `Exception` around some of its attentions.
    """


@dataclass
class _Call:
    """A `_Call` holds what a layer took and returned, and the stream just before it."""

    input: Any = None
    output: Any = None
    stream: Any = None


def _first(value: Any) -> Any:
    """Return the tensor of a layer that takes or returns more, as some attentions do."""
    return value[0] if isinstance(value, tuple) else value


def _watch(
    model: nn.Module,
    layer: nn.Module,
    reader: nn.Module | None,
    run: Run,
    utterance: Utterance,
) -> _Call:
    """Run a model on an utterance until a layer has been called."""
    call = _Call()

    def on_reader(_, args):
        call.stream = _first(args[0])

    def on_layer(_, args, output):
        call.input, call.output = _first(args[0]), _first(output)
        raise _Reached

    hooks = [layer.register_forward_hook(on_layer)]
    if reader is not None:
        hooks.append(reader.register_forward_pre_hook(on_reader))
    try:
        run(model, utterance)
    except _Reached:
        return call
    finally:
        for hook in hooks:
            hook.remove()
    raise ValueError(
        "an utterance ran through the model without one of its layers; expected a model "
        "that uses all of them"
    )


def _inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what each output of a layer is a linear function of, (rows, inputs).

    The last input is 1 if the layer has a bias.
    """
    if isinstance(layer, Constant):
        return x.new_ones(x[..., 0].numel(), 1, dtype=torch.float64)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        x = x.unsqueeze(-1) if isinstance(layer, nn.Conv1d) else x
        x = F.unfold(x, *_window(layer)).mT
    rows = x.flatten(0, -2).double()
    if layer.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return rows


def _window(layer: nn.Conv1d | nn.Conv2d) -> Iterator[tuple]:
    """Yield kernel, dilation, padding and stride of a convolution, in two dimensions."""
    sizes = layer.kernel_size, layer.dilation, layer.padding, layer.stride
    for size, none in zip(sizes, (1, 1, 0, 1), strict=True):
        yield (*size, none)[:2]


def _outputs(layer: nn.Module, y: Tensor) -> Tensor:
    """Return a layer's output as (rows, outputs), in float64."""
    channels_first = isinstance(layer, (nn.Conv1d, nn.Conv2d))
    rows = y.flatten(2).mT.flatten(0, 1) if channels_first else y.flatten(0, -2)
    return rows.double()


def _change_(layer: nn.Module, change: Tensor) -> None:
    """Add a change, (inputs, outputs), to a layer's weights."""
    bias = layer.value if isinstance(layer, Constant) else layer.bias
    if bias is not None:
        bias += change[-1].to(bias)
        change = change[:-1]
    if not isinstance(layer, Constant):
        layer.weight += change.T.reshape(layer.weight.shape).to(layer.weight)


def _can_be_fitted(layer: nn.Module) -> bool:
    if isinstance(layer, Constant):
        return layer.value is not None
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _layer_of(cut: nn.Module, writer: Writer) -> nn.Module | None:
    """Return the cut model's layer, or the constant in its place; None if it has gone."""
    for path in (writer.layer, writer.branch):
        try:
            layer = cut.get_submodule(path)
        except AttributeError:
            continue
        return layer if _can_be_fitted(layer) else None
    return None


@torch.no_grad()
def reconstruct_(
    cut: nn.Module,
    whole: nn.Module,
    writers: Sequence[Writer],
    utterances: Sequence[Utterance],
    run: Run,
    step: Step = quiet,
) -> None:
    """Fit layers of a cut model to the uncut one, in place, each after those before it.

    Each fourth utterance is held out: these decide how large a layer's ridge is, or that
    the layer stays as it is.

    Args:
        cut: the cut model, in evaluation mode
        whole: the uncut model, in evaluation mode
        writers: the layers in the order of computation
        utterances: batches of one utterance, so that there is no padding
        run: runs either model on an utterance
        step: is called with the name of each layer
    """
    for number, writer in enumerate(writers, 1):
        layer = _layer_of(cut, writer)
        if layer is None:
            continue
        step(f"fitting layer {number} of {len(writers)}: {writer.layer}")
        moments = _moments(cut, layer, whole, writer, utterances, run)
        if moments is not None:
            change = _best(*moments, getattr(layer, "bias", True) is not None)
            if change is not None:
                _change_(layer, change)


def _moments(
    cut: nn.Module,
    layer: nn.Module,
    whole: nn.Module,
    writer: Writer,
    utterances: Sequence[Utterance],
    run: Run,
) -> tuple[Moments, Moments] | None:
    """Return the moments of a layer's inputs, and of what its output lacks.

    Returns:
        those of the utterances to fit, and those of the ones that are held out; None
        where no utterance lacks anything, as before the first cut unit
    """
    whole_layer = whole.get_submodule(writer.layer)
    readers = [
        None if writer.reader is None else model.get_submodule(writer.reader)
        for model in (whole, cut)
    ]

    def lack(utterance: Utterance) -> tuple[Tensor, Tensor]:
        """Return what the layer reads, and what its output lacks, (rows, outputs)."""
        wanted = _watch(whole, whole_layer, readers[0], run, utterance)
        found = _watch(cut, layer, readers[1], run, utterance)
        lacks = _outputs(whole_layer, wanted.output)
        if writer.kept is not None:
            lacks = lacks[:, writer.kept]
        lacks = lacks - _outputs(layer, found.output)
        if writer.reader is not None:
            astray = (wanted.stream - found.stream).flatten(0, -2).double()
            lacks = lacks + astray / writer.factor
        return found.input, lacks

    if not any(bool(lack(utterance)[1].any()) for utterance in utterances):
        return None
    parts: list[Moments] = []
    for i, utterance in enumerate(utterances):
        read, lacks = lack(utterance)
        x = _inputs(layer, read)
        if not parts:
            parts = [Moments.of_none(x, lacks), Moments.of_none(x, lacks)]
        parts[i % HELD_OUT == HELD_OUT - 1].add_(x, lacks)
    fit, held_out = parts
    return fit, held_out


def _best(fit: Moments, held_out: Moments, intercept: bool) -> Tensor | None:
    """Return the change of a layer that is best on held-out rows; None if none is good.

    It is the solution for all rows, with the ridge that is best for the held-out ones if
    the others are solved. The held-out rows are then in `fit`, too.
    """
    least, chosen = held_out.error(), None
    if not float(fit.xx.diagonal().max()):
        return None
    for ridge in RIDGES:
        error = held_out.error(fit.solve(ridge, intercept))
        if error < least:
            least, chosen = error, ridge
    if chosen is None:
        return None
    fit.merge_(held_out)
    return fit.solve(chosen, intercept)
