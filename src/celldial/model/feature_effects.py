"""`FeatureEffects`: the effect of each batch, and of other categorical covariates, on every single feature.

The hidden layers of the decoder share the effects of a batch between features. A technology also acts on single
features: by the capture of a transcript, the mappability of a gene, the affinity of an antibody. Without parameters
for these, only the latent coordinates could represent them, and the batches would separate.

Axis suffixes: ``c`` cells, ``f`` features, ``k`` covariates, ``s`` categories of one covariate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from celldial.ops.csr import CSRTensor

__all__ = ["PSEUDOCOUNT", "FeatureEffects", "shrink"]

# Bounds of the prior standard deviation of an effect. If batches do not differ, the lower bound leaves the effects at
# practically zero.
MIN_SCALE, MAX_SCALE = 0.01, 1.0
# Added to observed and expected counts, so that all logarithms are finite.
PSEUDOCOUNT = 0.5


class FeatureEffects(nn.Module):
    """Effects of categories on the log rate of each feature, with a hierarchical normal prior.

    The prior has mean 0 and one standard deviation per covariate. `initialize` estimates it from the counts: the
    variance of the log fold changes between categories, less the variance that is expected from sampling cells. Effects
    of categories with few cells therefore shrink to 0.

    Parameters
    ----------
    n_categories
        Number of categories of each categorical covariate.
    n_features
        Number of features.
    scale
        Prior standard deviation before `initialize`.
    """

    scale_k: Tensor

    def __init__(self, n_categories: Sequence[int], n_features: int, scale: float = MIN_SCALE) -> None:
        super().__init__()
        self.categorical = nn.ModuleList(nn.Embedding(n, n_features) for n in n_categories)
        self.register_buffer("scale_k", torch.full((len(n_categories),), scale))
        for table in self.tables:
            nn.init.zeros_(table)

    @property
    def tables(self) -> list[Tensor]:
        """The effects ``(s, f)`` of each covariate."""
        return [embedding.weight for embedding in self.categorical if isinstance(embedding, nn.Embedding)]

    @torch.no_grad()
    def initialize(self, counts: CSRTensor, library_size_c: Tensor, category_ck: Tensor) -> None:
        """Set the prior, and the effects to their posterior means given the mean share of each feature."""
        for k, effect_sf in enumerate(self.tables):
            change_sf, variance_sf = log_fold_changes(counts, library_size_c, category_ck[:, k], len(effect_sf))
            self.scale_k[k], shrunken_sf = shrink(change_sf, variance_sf)
            effect_sf.copy_(shrunken_sf)

    def forward(self, logits_cf: Tensor, category_ck: Tensor) -> Tensor:
        """Add the effects of each cell's categories to its log rates."""
        for effect_sf, category_c in zip(self.tables, category_ck.unbind(-1), strict=True):
            logits_cf = logits_cf + nn.functional.embedding(category_c, effect_sf)
        return logits_cf


def shrink(change_sf: Tensor, variance_sf: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviation of effects, and their posterior means given log fold changes with variances."""
    # Weighted by the precision, so that features with few counts do not matter.
    precision_sf = 1 / variance_sf
    excess = (precision_sf * change_sf.square()).sum() - (precision_sf > 0).sum()
    scale = (excess / precision_sf.sum()).clamp_min(0).sqrt().clamp(MIN_SCALE, MAX_SCALE)
    return scale, change_sf * scale**2 / (scale**2 + variance_sf)


def log_fold_changes(
    counts: CSRTensor, library_size_c: Tensor, category_c: Tensor, n_categories: int
) -> tuple[Tensor, Tensor]:
    """Return the log fold change of each feature from all cells to those of each category, and its sampling variance.

    Both have shape ``(s, f)``. A category without cells has no change, with infinite variance.
    """
    shape = n_categories, counts.n_columns
    library_s = library_size_c.new_zeros(n_categories).index_add(0, category_c, library_size_c)
    share_f = counts.sum_columns(counts.value_n) / library_size_c.sum()
    flat_n = category_c[counts.row_n] * counts.n_columns + counts.column_n
    expected_sf = library_s[:, None] * share_f
    observed_sf = torch.zeros(shape, device=share_f.device).view(-1).index_add(0, flat_n, counts.value_n).view(shape)
    # The variance of a total is the sum of squared deviations of the cells from their expected counts.
    deviation_n = counts.value_n - 2 * library_size_c[counts.row_n] * share_f[counts.column_n]
    squares_s = library_size_c.new_zeros(n_categories).index_add(0, category_c, library_size_c.square())
    spread_sf = torch.zeros(shape, device=share_f.device).view(-1).index_add(0, flat_n, counts.value_n * deviation_n)
    spread_sf = spread_sf.view(shape) + squares_s[:, None] * share_f.square()
    change_sf = ((observed_sf + PSEUDOCOUNT) / (expected_sf + PSEUDOCOUNT)).log()
    variance_sf = (spread_sf.clamp_min(0) + PSEUDOCOUNT) / (expected_sf + PSEUDOCOUNT).square()
    return change_sf, torch.where(library_s[:, None] > 0, variance_sf.clamp_min(1e-6), torch.inf)
