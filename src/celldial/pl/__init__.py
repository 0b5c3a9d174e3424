"""The plots: they read what a model wrote into an AnnData, or a table, and need no model, nor torch.

All take ``ax``, ``show`` and ``return_fig`` as scanpy's plots do, leave matplotlib's settings as they are, and tell
their colors apart for color-blind readers, too.
"""

from celldial.pl.axes import axes
from celldial.pl.axis_features import axis_features
from celldial.pl.cell_cycle import cell_cycle
from celldial.pl.gradient_variance import gradient_variance
from celldial.pl.history import history
from celldial.pl.latent_traverse import latent_traverse
from celldial.pl.traverse_path import traverse_path

__all__ = ["axes", "axis_features", "cell_cycle", "gradient_variance", "history", "latent_traverse", "traverse_path"]
