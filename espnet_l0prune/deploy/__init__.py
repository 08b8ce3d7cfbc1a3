"""Deployment makes a small network of a gated experiment: cut, verified and measured."""
