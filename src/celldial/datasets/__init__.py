"""Data to start with, without a download: real counts that come with the installed packages, and simulated ones."""

from celldial.datasets.multiome import simulate_multiome
from celldial.datasets.pbmc68k import pbmc68k_reduced

__all__ = ["pbmc68k_reduced", "simulate_multiome"]
