"""What ESPnet's reporter leaves in a checkpoint, in whichever ESPnet.

Up to 202511 it saved times and NumPy's numbers as they are, which torch takes for safe
only where it is told so; from 202609 on they are plain data.
"""

import datetime
from typing import Any

import numpy as np

SECONDS = "__timedelta_seconds__"


def reported_types() -> list[Any]:
    """What it saves beside plain data, for `torch.serialization.safe_globals`."""
    value = np.float64(0)
    scalar = value.__reduce__()[0]
    types = [datetime.timedelta, scalar, np.dtype, type(value.dtype)]
    return [*types, (scalar, "numpy.core.multiarray.scalar")]  # the last of NumPy 1


def reported_seconds(value: object) -> object:
    """Of a time in either form, its seconds, as they are; None for anything else."""
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return value.get(SECONDS) if isinstance(value, dict) else None
