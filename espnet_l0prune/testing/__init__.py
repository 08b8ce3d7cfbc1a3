"""Small models, data and runs: for tests and benchmarks, of this project and of what is
built on it. The rest of the package does not import it."""
