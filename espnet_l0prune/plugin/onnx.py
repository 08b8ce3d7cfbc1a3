"""`encoder: onnx` and `decoder: onnx` are networks that onnxruntime runs to decode."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_l0prune.core.measuring import open_graph
from espnet_l0prune.core.reading import open_binary
from espnet_l0prune.networks.espnet_modules import (
    AbsDecoder,
    AbsEncoder,
    BatchScorerInterface,
    TooShortUttError,
)

Shape = tuple[int | type[int] | None, ...]
INTEGERS = "ys"  # the input that holds tokens; all others are in float32


class OnnxGraph:
    """An `OnnxGraph` is a file of `espnet-l0prune export onnx`, run on the CPU.

    It uses as many threads as torch does when it is loaded. Weights that are too large
    for one file lie beside it; onnxruntime opens none that lie elsewhere.

    Args:
        file: path of the graph
        inputs, outputs: the expected shape of each input or output, by name: a size,
            `int` for any size that the graph states, None for any other; None for all
            that the graph has

    Raises:
        ImportError: onnxruntime is not installed
        ValueError: a file that is missing, that is not a graph, or that has other inputs
            or outputs
    """

    def __init__(
        self,
        file: str,
        inputs: Mapping[str, Shape] | None = None,
        outputs: Mapping[str, Shape] | None = None,
    ):
        self._made_of = file, inputs, outputs
        self.file = file
        try:
            with open_binary(file):  # onnxruntime would wait for a pipe's writer
                self._session = open_graph(file, torch.get_num_threads())
        except ImportError as e:
            raise ImportError(f"{file} needs onnxruntime: pip install onnxruntime") from e
        except Exception as e:  # onnxruntime's errors have no common base
            raise ValueError(
                f"onnxruntime cannot load {file} ({_line(e)}); expected a graph that "
                "`espnet-l0prune export onnx` wrote, and the .data file beside it where "
                "there was one"
            ) from e
        nodes = [*self._session.get_inputs(), *self._session.get_outputs()]
        self.shapes = {x.name: x.shape for x in nodes}
        types = {x.name: x.type for x in nodes}
        taken = {x.name for x in self._session.get_inputs()}
        expected = {**(inputs or {}), **(outputs or {})}
        fits = all(
            types.get(name) == f"tensor({'int64' if name == INTEGERS else 'float'})"
            and _fits(self.shapes[name], shape)
            for name, shape in expected.items()
        )
        if not fits or (inputs is not None and taken != {*inputs}):
            present = ", ".join(f"{k} {types[k]} {v}" for k, v in self.shapes.items())
            raise ValueError(
                f"{file} is another graph: it has {present}; expected "
                f"{_written(inputs)} to {_written(outputs)}. Take the file that was "
                "exported with this model."
            )
        self.outputs = [*outputs] if outputs else None

    def __reduce__(self):
        return OnnxGraph, self._made_of

    def __call__(self, **inputs: Tensor) -> list[Tensor]:
        """Run the graph; the outputs are on the CPU.

        Raises:
            ValueError: inputs that the graph does not take
        """
        arrays = {name: x.detach().cpu().numpy() for name, x in inputs.items()}
        try:
            return [torch.from_numpy(x) for x in self._session.run(self.outputs, arrays)]
        except Exception as e:
            shapes = {name: tuple(x.shape) for name, x in inputs.items()}
            raise ValueError(
                f"onnxruntime cannot run {self.file} on {shapes} ({_line(e)}); expected "
                f"{self.shapes}"
            ) from e


def _fits(shape: list, expected: Shape) -> bool:
    """Return whether a graph's sizes, numbers or names, are the expected ones."""
    return len(shape) == len(expected) and all(
        isinstance(n, int) if wanted is int else wanted in (None, n)
        for n, wanted in zip(shape, expected, strict=True)
    )


def _written(shapes: Mapping[str, Shape] | None) -> str:
    def size(n: int | type[int] | None) -> str:
        return "any" if n is None else "a number" if n is int else str(n)

    return ", ".join(
        f"{k} ({', '.join(map(size, v))})" for k, v in (shapes or {}).items()
    )


def _line(e: Exception) -> str:
    """Return the first line of a message of onnxruntime."""
    return str(e).split("\n", 1)[0]


class OnnxEncoder(AbsEncoder):
    """An `OnnxEncoder` is an encoder that was exported.

    Args:
        input_size: number of features in a frame
        file: the graph, which maps `feats` (1, frames, input_size) to `encoder_out`
        shortest: the fewest frames that the encoder takes

    Raises:
        ImportError: see `OnnxGraph`
        ValueError: see `OnnxGraph`; `shortest` that is not a number
    """

    def __init__(self, input_size: int, file: str, shortest: int = 1):
        super().__init__()
        if not isinstance(shortest, int):
            raise ValueError(
                f"encoder_conf: shortest is {shortest!r}; expected a number of frames"
            )
        self.input_size, self.shortest = input_size, shortest
        self.graph = OnnxGraph(
            file,
            inputs={"feats": (1, None, input_size)},
            outputs={"encoder_out": (1, None, int)},
        )

    def output_size(self) -> int:
        return self.graph.shapes["encoder_out"][-1]

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Encode (batch, frames, input_size), each utterance by itself.

        Raises:
            TooShortUttError: fewer frames than `shortest`; ESPnet's encoders raise it
                too, and its commands then write an empty text
        """
        frames = int(ilens.min())
        if frames < self.shortest:
            raise TooShortUttError(
                f"has {frames} frames and is too short for subsampling "
                f"(it needs {self.shortest} frames), return empty results",
                frames,
                self.shortest,
            )
        encoded = [
            self.graph(feats=x[None, :n].float())[0][0]
            for x, n in zip(xs_pad, ilens.tolist(), strict=True)
        ]
        lengths = torch.tensor([len(x) for x in encoded], device=ilens.device)
        return pad_sequence(encoded, batch_first=True).to(xs_pad), lengths, None


class OnnxDecoder(AbsDecoder, BatchScorerInterface):
    """An `OnnxDecoder` is an exported step of a decoder, which scores in a beam search.

    Args:
        vocab_size, encoder_output_size: sizes that ESPnet passes to every decoder
        file: the graph, which maps `ys` (batch, length), `memory` (batch, frames,
            encoder_output_size) and `cache` (blocks, batch, length - 1, width) to `logp`
            (batch, vocab_size) and `new_cache`

    Raises:
        ImportError: see `OnnxGraph`
        ValueError: see `OnnxGraph`
    """

    def __init__(self, vocab_size: int, encoder_output_size: int, file: str):
        super().__init__()
        self.graph = OnnxGraph(
            file,
            inputs={
                "ys": (None, None),
                "memory": (None, None, encoder_output_size),
                "cache": (int, None, None, int),
            },
            outputs={"logp": (None, vocab_size), "new_cache": (int, None, None, int)},
        )

    def forward(self, *args: Any, **kwargs: Any):
        """Raise NotImplementedError, since there is nothing to train."""
        raise NotImplementedError("decoder: onnx decodes; it cannot be trained")

    def score(self, ys: Tensor, state: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score the next token of one prefix; see `ScorerInterface`."""
        logp, states = self.batch_score(ys[None], [state], x[None])
        return logp[0], states[0]

    def batch_score(
        self, ys: Tensor, states: list[Tensor | None], xs: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Score the next tokens of some prefixes of the same length.

        Args:
            ys: (batch, length)
            states: for each prefix, the state without its last token, (blocks, length -
                1, width); None where the prefix is a single token
            xs: (batch, frames, encoder_output_size)

        Returns:
            log-probabilities (batch, vocab_size), and the new states
        """
        blocks, _, _, width = self.graph.shapes["cache"]
        cache = (
            torch.zeros(blocks, len(ys), 0, width)
            if states[0] is None
            else torch.stack(states, 1)
        )
        logp, cache = self.graph(ys=ys, memory=xs.float(), cache=cache)
        return logp.to(xs), list(cache.unbind(1))
