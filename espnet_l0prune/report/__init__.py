"""A page on experiments, from the files that they leave."""
