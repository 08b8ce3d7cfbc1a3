"""A model can be updated a few times on random batches."""

import torch


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return features of unequal length and random texts, in ESPnet's form."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "speech": torch.randn(3, 80, 20, generator=generator),
        "speech_lengths": torch.tensor([80, 61, 47]),
        "text": torch.randint(2, 10, (3, 5), generator=generator),
        "text_lengths": torch.tensor([5, 3, 4]),
    }


def train(net, optimizer, steps: range, clip: float = 5.0) -> list[dict[str, float]]:
    """Make updates as ESPnet's trainer does, each from its own random state."""
    history = []
    for i in steps:
        torch.manual_seed(1000 + i)
        loss, stats, _ = net.train()(**batch(i))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        history.append({k: float(v) for k, v in stats.items() if v is not None})
    return history
