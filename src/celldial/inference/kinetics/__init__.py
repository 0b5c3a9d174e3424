"""Variational inference of RNA kinetics along a periodic coordinate."""
