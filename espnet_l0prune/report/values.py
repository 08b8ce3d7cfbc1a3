"""Numbers are read from files that may be damaged, or of another version."""

LARGEST = 1e30  # no training gives a number beyond it, and no axis can show one


def number(value: object) -> float | None:
    """Return a value if it is a finite and plausible number, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= LARGEST else None  # NaN is never less


def amount(value: object) -> float | None:
    """Return a value if it is a number from 0 on, otherwise None."""
    parsed = number(value)
    return parsed if parsed is not None and parsed >= 0 else None


def count(value: object) -> int | None:
    """Return a value if it is a whole number from 1 on, otherwise None."""
    whole = number(value) if isinstance(value, int) else None
    return int(whole) if whole is not None and whole >= 1 else None


def amounts(values: object) -> dict[str, float]:
    """Return the numbers from 0 on in a mapping, by name; none if it is not a mapping."""
    mapping = values if isinstance(values, dict) else {}
    known = {str(name): amount(value) for name, value in mapping.items()}
    return {name: value for name, value in known.items() if value is not None}
