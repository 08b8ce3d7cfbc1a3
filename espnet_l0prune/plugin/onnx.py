"""`encoder: onnx` and `decoder: onnx`: networks that onnxruntime runs, to decode with."""

from typing import Any

import torch
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_l0prune.plugin.espnet_modules import BatchScorerInterface


class OnnxGraph:
    """A file of `espnet-l0prune export onnx`, run on the CPU.

    It uses as many threads as torch does when it is loaded.

    Args:
        file: path of the graph

    Raises:
        ImportError: onnxruntime is not installed
        ValueError: a file that is missing, or no graph
    """

    def __init__(self, file: str):
        self.file = file
        try:
            import onnxruntime
        except ImportError as e:
            raise ImportError(f"{file} needs onnxruntime: pip install onnxruntime") from e
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # onnxruntime's have no common base
            raise ValueError(
                f"onnxruntime cannot load {file} ({e}); expected a graph that "
                "`espnet-l0prune export onnx` wrote"
            ) from e
        self.shapes = {x.name: x.shape for x in self._session.get_inputs()}
        self.shapes |= {x.name: x.shape for x in self._session.get_outputs()}

    def __reduce__(self):
        return OnnxGraph, (self.file,)

    def __call__(self, **inputs: Tensor) -> list[Tensor]:
        """Run it; what is returned is on the CPU.

        Raises:
            ValueError: inputs that the graph does not take, such as too short a speech
        """
        arrays = {name: x.detach().cpu().numpy() for name, x in inputs.items()}
        try:
            return [torch.from_numpy(x) for x in self._session.run(None, arrays)]
        except Exception as e:
            shapes = {name: tuple(x.shape) for name, x in inputs.items()}
            raise ValueError(
                f"onnxruntime cannot run {self.file} on {shapes} ({e}); expected "
                f"{self.shapes}, and speech that is longer than the subsampling takes"
            ) from e


class OnnxEncoder(AbsEncoder):
    """An encoder that was exported.

    Args:
        input_size: of the features
        file: the graph: `feats` (1, frames, input_size) to `encoder_out`
    """

    def __init__(self, input_size: int, file: str):
        super().__init__()
        self.input_size, self.graph = input_size, OnnxGraph(file)

    def output_size(self) -> int:
        return self.graph.shapes["encoder_out"][-1]

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """Encode (batch, frames, input_size), each utterance by itself, as
        `Speech2Text` does."""
        found = [
            self.graph(feats=x[None, :n].float())[0][0]
            for x, n in zip(xs_pad, ilens.tolist(), strict=True)
        ]
        lengths = torch.tensor([len(x) for x in found], device=ilens.device)
        return pad_sequence(found, batch_first=True).to(xs_pad), lengths, None


class OnnxDecoder(AbsDecoder, BatchScorerInterface):
    """A step of an attention decoder that was exported, as a scorer of a beam search.

    Args:
        vocab_size, encoder_output_size: as ESPnet gives them
        file: the graph: `ys` (batch, length), `memory` (batch, frames,
            encoder_output_size) and `cache` (blocks, batch, length - 1, width) to `logp`
            (batch, vocab_size) and `new_cache`
    """

    def __init__(self, vocab_size: int, encoder_output_size: int, file: str):
        super().__init__()
        self.graph = OnnxGraph(file)

    def forward(self, *args: Any, **kwargs: Any):
        """Raise NotImplementedError: there is nothing to train."""
        raise NotImplementedError("decoder: onnx decodes; it cannot be trained")

    def score(self, ys: Tensor, state: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score the next token of one prefix; see `ScorerInterface`."""
        logp, states = self.batch_score(ys[None], [state], x[None])
        return logp[0], states[0]

    def batch_score(
        self, ys: Tensor, states: list[Tensor | None], xs: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Score the next tokens of some prefixes of one length.

        Args:
            ys: (batch, length)
            states: of each prefix but its last token, (blocks, length - 1, width); None
                where there is no more than that token
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
