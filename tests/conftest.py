"""What several tests need: a small ESPnet model, and real speech where it is."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# `make test` has a process a core. Without a variable of its own, numba gives torch a
# thread a core as soon as it runs a loop in parallel, as in the transducer's loss.
for _threads in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")
settings.register_profile("tests", deadline=None, print_blob=True)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def fsdd() -> Path:
    """The folder of the FSDD test data: real speech, outside this repository."""
    shared = Path(__file__).parents[2] / "shared/data/fsdd"
    folder = Path(os.environ.get("ESPNET_L0PRUNE_FSDD", shared))
    if not (folder / "make_corpus.py").exists():
        pytest.skip("no real speech here: set ESPNET_L0PRUNE_FSDD to the FSDD folder")
    return folder


@pytest.fixture(scope="session")
def mini_an4() -> Path:
    """The archive of ESPnet's recipe mini_an4: real speech, outside this repository."""
    shared = Path(__file__).parents[2] / "shared/data/mini_an4/downloads.tar.gz"
    archive = Path(os.environ.get("ESPNET_L0PRUNE_MINI_AN4", shared))
    if not archive.exists():
        pytest.skip("no real speech here: set ESPNET_L0PRUNE_MINI_AN4 to the archive")
    return archive
