"""`infer`: the posterior of the parameters of a simulator, given cells, through its surrogate."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from celldial.data.cell_checks import check_has_counts
from celldial.inference.fitted_model import read_cells
from celldial.surrogate.calibration import uncalibrated
from celldial.surrogate.evidence import Evidence, fit_normal
from celldial.surrogate.sampling import Surrogate
from celldial.utils.threads import limit_threads
from celldial.utils.validation import check_integer
from celldial.utils.warnings import warn

__all__ = ["ParameterPosterior", "infer"]

# A posterior whose mean is farther from the middle of the range, in standard deviations of the prior, is at its end.
MAX_MEAN = 2.5


class ParameterPosterior(NamedTuple):
    """Posterior of the parameters of a simulator.

    Parameters
    ----------
    table
        One row for each parameter: ``median``, ``lower`` and ``upper`` (90 % credible interval), and ``information``,
        one minus the ratio of posterior variance to prior variance.
    draws
        Draws from the posterior, one column for each parameter.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import celldial
    >>> def simulator(depth):
    ...     return celldial.datasets.simulate_multiome(60, 60, 80, depth=depth)
    >>> settings = pd.DataFrame({"depth": np.linspace(0.5, 2, 16)})
    >>> surrogate = celldial.surrogate.fit(simulator, settings, max_epochs=2, progress=False)
    >>> posterior = celldial.surrogate.infer(surrogate, simulator(1.5))
    >>> posterior.draws.shape
    (2000, 1)
    """

    table: pd.DataFrame
    draws: pd.DataFrame


def infer(surrogate: Surrogate, adata: Any, *, n_draws: int = 2000, seed: int = 0) -> ParameterPosterior:
    """Infer the parameters of a simulator from cells, by variational inference through its surrogate.

    Parameters
    ----------
    surrogate
        A surrogate of the simulator.
    adata
        Cells in memory, all from one setting, with the counts and features of the simulator.
    n_draws
        Number of draws from the posterior, at least 100.
    seed
        Seed of the random numbers.

    Returns
    -------
    ParameterPosterior
        Table of medians and 90 % credible intervals, and draws. The prior is uniform over the range of the simulations.

    Raises
    ------
    ValueError, TypeError, KeyError
        As `VAE.transform`; also if no cell has counts.

    Warns
    -----
    UserWarning
        The surrogate is not calibrated, or a parameter is at the end of its range.

    Notes
    -----
    The posterior is normal in coordinates in which the prior is standard normal. If the surrogate was fitted with
    `calibrate`, bias and variance of its errors at settings that were left out are included in the intervals.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import celldial
    >>> def simulator(depth):
    ...     return celldial.datasets.simulate_multiome(60, 60, 80, depth=depth)
    >>> settings = pd.DataFrame({"depth": np.linspace(0.5, 2, 16)})
    >>> surrogate = celldial.surrogate.fit(simulator, settings, max_epochs=2, progress=False)
    >>> posterior = celldial.surrogate.infer(surrogate, simulator(1.5))
    >>> list(posterior.table.columns)
    ['median', 'lower', 'upper', 'information']
    """
    check_integer("n_draws", n_draws, 100)
    _, cells = read_cells(surrogate.model, adata)
    check_has_counts(cells)
    cells = cells.select((~cells.empty_c).nonzero()[:, 0])
    space = surrogate.space
    calibration = surrogate.calibration
    if calibration is None:
        calibration = uncalibrated(len(space.ranges))
        warn(
            "the surrogate is not calibrated, and intervals do not include its errors: fit it to 16 settings or more, "
            "with calibrate=True"
        )
    with limit_threads(0):
        evidence = Evidence.of_cells(surrogate.model.module_, surrogate.density, space, cells, seed)
        posterior = fit_normal(evidence, seed)
    coordinate_nk = calibration.draw(posterior, n_draws, np.random.default_rng(seed))
    for key, mean in zip(space.names, coordinate_nk.mean(0), strict=True):
        if abs(mean) > MAX_MEAN:
            lowest, highest = space.ranges[key]
            warn(
                f"parameter {key!r} is at the end of its range, {lowest:g} to {highest:g}, and the true value may be "
                "beyond it: fit a surrogate with a wider range"
            )
    draws = pd.DataFrame(space.to_value(torch.from_numpy(coordinate_nk)).numpy(), columns=space.names)
    lower_k, median_k, upper_k = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
    information_k = np.maximum(1 - coordinate_nk.var(0), 0)
    columns = {"median": median_k, "lower": lower_k, "upper": upper_k, "information": information_k}
    return ParameterPosterior(pd.DataFrame(columns, index=space.names), draws)
