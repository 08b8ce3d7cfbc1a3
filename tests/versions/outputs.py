"""What a model computes, without anything of the plugin's."""

import numpy as np
import torch


@torch.no_grad()
def compute(model) -> np.ndarray:
    """Of features and a text that are no random numbers, in float64: the decoder's
    logits and the logarithms of the CTC posteriors."""
    model = model.double().eval()
    frames = torch.arange(2 * 50 * 20, dtype=torch.float64).view(2, 50, 20)
    encoded, lengths = model.encode((frames / 7).sin(), torch.tensor([50, 41]))
    text = torch.tensor([[model.sos, 2, 3, 4], [model.sos, 5, 6, 7]])
    said, _ = model.decoder(encoded, lengths, text, torch.tensor([4, 4]))
    return torch.cat([said.flatten(), model.ctc.log_softmax(encoded).flatten()]).numpy()
