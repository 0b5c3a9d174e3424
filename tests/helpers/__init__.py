"""Builders of cells and models, and comparisons of figures, that several tests share."""
