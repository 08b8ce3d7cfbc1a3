"""An encoder for several speakers answers for each of them."""

from torch import Tensor, nn


def hears_speakers(model: nn.Module) -> bool:
    """Return whether a model answers for each of several speakers (`pit_espnet`)."""
    return hasattr(model, "pit_ctc")


def one_after_another(output: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return what an encoder says as if each speaker were an utterance of its own.

    Args:
        output: (batch, time, size), or (batch, speakers, time, size)
        lengths: number of valid frames, (batch,), or (batch, speakers)

    Returns:
        (batch, time, size) and (batch,), where the batch has the speakers of the first
        utterance, then those of the second, and so on
    """
    if output.dim() < 4:
        return output, lengths
    return output.flatten(0, 1), lengths.flatten(0, 1)


def reordered(output: Tensor, order: Tensor) -> Tensor:
    """Return outputs of `one_after_another`, with each utterance's speakers in an order.

    Args:
        output: (batch x speakers, time, size)
        order: the numbers of the speakers, (batch, speakers)
    """
    order = order.to(output.device)
    return (
        output.unflatten(0, order.shape)
        .take_along_dim(order[:, :, None, None], 1)
        .flatten(0, 1)
    )
