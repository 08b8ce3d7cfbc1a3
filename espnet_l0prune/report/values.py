"""Numbers out of files that may be damaged, or of another version."""

LARGEST = 1e30  # what is beyond it comes of no training, and no axis can show it


def number(value: object) -> float | None:
    """A number; None for what is none, is not finite, or is beyond all that is real."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= LARGEST else None  # NaN is never less


def amount(value: object) -> float | None:
    """A number from 0 on; None for all else."""
    found = number(value)
    return found if found is not None and found >= 0 else None


def count(value: object) -> int | None:
    """A whole number from 1 on; None for all else."""
    found = number(value) if isinstance(value, int) else None
    return int(found) if found is not None and found >= 1 else None


def amounts(values: object) -> dict[str, float]:
    """The numbers from 0 on in a mapping, by name; none of what is no mapping."""
    found = values if isinstance(values, dict) else {}
    known = {str(name): amount(value) for name, value in found.items()}
    return {name: value for name, value in known.items() if value is not None}
