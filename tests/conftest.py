"""What several tests need: a small ESPnet model, and real speech where it is."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # `make test` has a process a core


@pytest.fixture(scope="session")
def fsdd() -> Path:
    """The folder of the FSDD test data: real speech, outside this repository."""
    shared = Path(__file__).parents[2] / "shared/data/fsdd"
    folder = Path(os.environ.get("ESPNET_L0PRUNE_FSDD", shared))
    if not (folder / "make_corpus.py").exists():
        pytest.skip("no real speech here: set ESPNET_L0PRUNE_FSDD to the FSDD folder")
    return folder
