"""A report is a page on experiments, made from the files that they leave."""
