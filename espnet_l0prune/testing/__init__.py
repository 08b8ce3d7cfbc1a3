"""Small models, data and runs serve tests and benchmarks, of this project and of others.

The rest of the package does not import them.
"""
