"""Optimization of a model on a source of cells."""
