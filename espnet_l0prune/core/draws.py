"""What is drawn at random can be had again."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def same_draws(seed: int = 0) -> Iterator[None]:
    """Draw the same random numbers in each `with` block, by torch, numpy and Python.

    Afterwards their states are as they were.

    Args:
        seed: the numbers depend on it alone
    """
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
