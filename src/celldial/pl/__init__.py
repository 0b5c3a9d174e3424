"""The plots: they read what a model wrote into an AnnData, or a table, and need no model, nor torch.

All but `dial`, which writes a page for the browser, take ``ax``, ``show`` and ``return_fig`` as scanpy's plots do, and
leave matplotlib's settings as they are. Color-blind readers can tell their colors apart, too.
"""

from celldial.pl.axes import axes
from celldial.pl.axis_features import axis_features
from celldial.pl.cell_cycle import cell_cycle
from celldial.pl.dial import dial
from celldial.pl.gradient_variance import gradient_variance
from celldial.pl.history import history
from celldial.pl.latent_traverse import latent_traverse
from celldial.pl.traverse_path import traverse_path

__all__ = [
    "axes",
    "axis_features",
    "cell_cycle",
    "dial",
    "gradient_variance",
    "history",
    "latent_traverse",
    "traverse_path",
]
