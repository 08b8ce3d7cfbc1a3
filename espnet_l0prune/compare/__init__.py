"""Other ways to choose units, for comparison with gates that are trained."""
