"""Sentences of `check`: what fails, and what to try."""

from __future__ import annotations

from celldial.model.likelihoods import LIKELIHOODS
from celldial.tl.check_statistics import Finding
from celldial.utils.messages import feature_noun

__all__ = ["advise"]

ZERO_INFLATED, OVERDISPERSED = "zero_inflated_negative_binomial", "negative_binomial"


def advise(finding: Finding, likelihood: str, overall: float, has_batch_dispersion: bool) -> str:
    """Return one sentence on what a failed check found, and one on what to try.

    Parameters
    ----------
    finding
        The result of the check.
    likelihood
        Likelihood of the modality.
    overall
        Deviation in all batches together, on the scale of the test.
    has_batch_dispersion
        Whether the model can learn a dispersion for each batch, and does not.
    """
    noun = feature_noun(finding.modality)
    where = finding.modality if finding.batch == "all" else f"{finding.modality} in batch {finding.batch!r}"
    differs = finding.batch != "all" and abs(finding.deviation - overall) > abs(overall)
    more = "More" if finding.deviation > 0 else "Fewer"
    if finding.check == "zeros":
        return _zeros(finding, where, likelihood, more)
    if finding.check == "dispersion":
        return _dispersion(finding, where, likelihood, differs, has_batch_dispersion)
    if finding.check == "feature_dispersion":
        return (
            f"{where}: the dispersion of single {noun}s differs from their counts (root mean square of the log ratio "
            f"{finding.observed:.2f}, at most {finding.upper:.2f} expected). Train for more epochs, "
            f"{_other_likelihood(likelihood)}, and look for {noun}s with outliers."
        )
    if finding.check == "mean_variance":
        if finding.deviation > 0:
            remedy = _capitalized(_other_likelihood(likelihood))
            return f"{where}: the variance rises faster with the mean than the likelihood predicts. {remedy}."
        return (
            f"{where}: the variance rises more slowly with the mean than the likelihood predicts, so the dispersions "
            f"of {noun}s with many counts are too high. Train for more epochs."
        )
    if finding.check == "library_size":
        return (
            f"{where}: {more.lower()} {noun}s than expected are detected in cells of large library size, so depth is "
            "not fully modeled. Check that the counts are raw, and look for doublets and for cells of low quality."
        )
    if finding.check == "correlations":
        return (
            f"{where}: {noun}s are correlated beyond their common latent state (root mean square correlation "
            f"{finding.observed:.3f}, at most {finding.upper:.3f} expected). Use more latent coordinates (n_latent), "
            "train for more epochs, or add a covariate that is missing."
        )
    if finding.check == "depth":
        return (
            f"{where}: the library sizes differ from those of the training cells (distance {finding.observed:.2f}). "
            "Hold cells out at random, or fit a model that includes cells like these."
        )
    if finding.check == "doublets":
        return (
            f"{where}: cells that lie between cell types, where sums of two cells lie, have more counts than others: "
            "doublets, or a type of large cells between two others. Run a doublet detector, such as "
            "scanpy.pp.scrublet, and fit without the doublets that it finds."
        )
    if finding.check == "importance_weights":
        return (
            f"The importance weights of {100 * finding.observed:.0f} % of the cells have a heavy tail (Pareto k > "
            "0.7), so the posterior of these cells is too narrow or has the wrong shape. Train for more epochs, or use "
            'posterior="flow".'
        )
    side = "wider" if finding.deviation > 0 else "narrower"
    return (
        f"{where}: {100 * finding.observed:.1f} % of the counts are inside their 90 % predictive intervals, which are "
        f"{side} than the counts require. {_capitalized(_other_likelihood(likelihood))}."
    )


def _zeros(finding: Finding, where: str, likelihood: str, more: str) -> str:
    """Return the sentences on zeros."""
    if finding.deviation > 0 and likelihood != ZERO_INFLATED and not LIKELIHOODS[likelihood].binary:
        return (
            f"{where}: more zeros than the likelihood predicts, as with zero inflation "
            f"({100 * finding.deviation:.1f} % of the counts expected above 0). Try likelihood={ZERO_INFLATED!r}, and "
            "compare score on held-out cells."
        )
    return (
        f"{where}: {more.lower()} zeros than the likelihood predicts. "
        f"{_capitalized(_other_likelihood(likelihood))}, or train for more epochs."
    )


def _dispersion(finding: Finding, where: str, likelihood: str, differs: bool, has_batch_dispersion: bool) -> str:
    """Return the sentences on the dispersion of all features."""
    found = f"{where}: squared deviations from the mean are {finding.observed:.2f} times as large as predicted"
    if differs:
        remedy = (
            'dispersion="feature-batch"'
            if has_batch_dispersion
            else "a model for each batch if you compare variances or intervals between batches"
        )
        return f"{found}, unlike in other batches, so the dispersion depends on the batch. Use {remedy}."
    if finding.deviation > 0 and likelihood not in (OVERDISPERSED, ZERO_INFLATED):
        return f"{found}: overdispersion. Use likelihood={OVERDISPERSED!r}."
    if finding.deviation > 0:
        return f"{found}. Use more latent coordinates (n_latent), train for more epochs, or look for outliers."
    return f"{found}, so intervals are too wide. Train for more epochs."


def _other_likelihood(likelihood: str) -> str:
    """Return a proposal of another likelihood, as a part of a sentence."""
    if LIKELIHOODS[likelihood].binary:
        return "try likelihood='poisson' on fragment counts"
    names = [OVERDISPERSED, ZERO_INFLATED]
    return "try likelihood=" + " or ".join(repr(name) for name in names if name != likelihood)


def _capitalized(text: str) -> str:
    """Return a text that begins with a capital letter."""
    return text[:1].upper() + text[1:]
