"""Sparse numerics: one reference, several backends."""
