"""Example data that need no download: blood cells that are installed with scanpy, and simulated cells."""

from celldial.datasets.kinetics import simulate_kinetics
from celldial.datasets.multiome import simulate_multiome
from celldial.datasets.pbmc68k import pbmc68k_reduced

__all__ = ["pbmc68k_reduced", "simulate_kinetics", "simulate_multiome"]
