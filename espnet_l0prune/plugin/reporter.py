"""Every ESPnet's reporter leaves data in a checkpoint, in different forms.

Up to 202511 it saved times and NumPy's numbers as they are, which torch takes for safe
only where it is told so; from 202609 on they are plain data.
"""

import datetime
from typing import Any

import numpy as np

SECONDS = "__timedelta_seconds__"


def reported_types() -> list[Any]:
    """Return a reporter's types, in the form that torch's safe_globals takes."""
    value = np.float64(0)
    scalar = value.__reduce__()[0]
    types = [datetime.timedelta, scalar, np.dtype, type(value.dtype)]
    return [*types, (scalar, "numpy.core.multiarray.scalar")]  # NumPy 1's name


def reported_seconds(value: object) -> object:
    """Return the seconds of a time in either form; None for anything else."""
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return value.get(SECONDS) if isinstance(value, dict) else None
