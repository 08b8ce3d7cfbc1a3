"""From a gated experiment to a small network: cut, verify, measure."""
