"""`compare`: cells of a surrogate beside cells of the simulator, at settings that were left out of the fit.

Axis suffixes: ``c`` cells, ``f`` features.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from celldial.surrogate.sampling import Surrogate
from celldial.surrogate.simulations import Simulator, run
from celldial.utils.validation import check_integer

__all__ = ["compare"]

Array = NDArray[Any]

# Features with the highest means, between which correlations are compared.
N_CORRELATED = 50
N_FOLDS, N_TREES, MIN_LEAF, PENALTY = 3, 200, 3, 0.01
# Runs of the surrogate to time it.
N_TIMED = 3


def compare(
    surrogate: Surrogate,
    simulator: Simulator,
    parameters: pd.DataFrame,
    n_cells: int | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare a surrogate with its simulator, at settings that were left out of the fit.

    Parameters
    ----------
    surrogate
        The surrogate.
    simulator
        As in `celldial.surrogate.fit`.
    parameters
        Table of settings, as in `celldial.surrogate.fit`.
    n_cells
        Number of random cells of each run to compare; by default all. Times are those of whole runs.
    seed
        Seed of the random numbers.

    Returns
    -------
    pandas.DataFrame
        The settings, with these columns:

        - ``mean_correlation``, ``variance_correlation``: correlation over features of the log of one plus the mean
          count, and of one plus the variance.
        - ``correlation_correlation``: correlation between the two matrices of correlations of log counts, of the 50
          features with the highest means.
        - ``auc``: area under the curve of a classifier that tells simulated cells from cells of the surrogate, in cells
          that it was not trained on: the higher of a logistic regression and a random forest. 0.5 if they cannot be
          told apart.
        - ``simulator_seconds``, ``surrogate_seconds``, ``speed_ratio``: time of a run, time of the surrogate for as
          many cells, and their ratio.

    Raises
    ------
    TypeError, ValueError, KeyError
        As `celldial.surrogate.fit` and `Surrogate.sample`.

    Warns
    -----
    UserWarning
        A parameter is outside the range of the simulations.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import celldial
    >>> def simulator(depth):
    ...     return celldial.datasets.simulate_multiome(60, 60, 80, depth=depth)
    >>> settings = pd.DataFrame({"depth": np.linspace(0.5, 2, 6)})
    >>> surrogate = celldial.surrogate.fit(simulator, settings, max_epochs=2, calibrate=False, progress=False)
    >>> table = celldial.surrogate.compare(surrogate, simulator, pd.DataFrame({"depth": [1.1]}))
    >>> bool(table["auc"].between(0, 1).all())
    True
    """
    if not isinstance(parameters, pd.DataFrame):
        raise TypeError(f"parameters must be a DataFrame with a row for each setting, not {type(parameters).__name__}")
    if n_cells is not None:
        check_integer("n_cells", n_cells, 2 * N_FOLDS)
    random = np.random.default_rng(seed)
    surrogate.space.read_table(parameters)
    rows = []
    for number, (_name, setting) in enumerate(parameters.iterrows()):
        start = time.perf_counter()
        simulated = run(simulator, setting, None, random)
        simulator_seconds = time.perf_counter() - start
        values = {str(key): float(value) for key, value in setting.items()}
        seconds = []
        for _ in range(N_TIMED):
            start = time.perf_counter()
            sampled = surrogate.sample(values, simulated.n_obs, seed=seed + number)
            seconds.append(time.perf_counter() - start)
        surrogate_seconds = min(seconds)
        chosen_c = random.permutation(simulated.n_obs)[:n_cells]
        simulated_cf = simulated[:, sampled.var_names].X[chosen_c].toarray()
        sampled_cf = sampled.X[: len(chosen_c)].toarray()
        rows.append(
            compare_counts(simulated_cf, sampled_cf, seed)
            | {
                "simulator_seconds": simulator_seconds,
                "surrogate_seconds": surrogate_seconds,
                "speed_ratio": simulator_seconds / surrogate_seconds,
            }
        )
    return parameters.join(pd.DataFrame(rows, index=parameters.index))


def compare_counts(one_cf: Array, other_cf: Array, seed: int) -> dict[str, float]:
    """Return the measures of `compare` that depend on the counts alone, shape ``(c, f)``."""
    mean = [np.log1p(x_cf.mean(0)) for x_cf in (one_cf, other_cf)]
    variance = [np.log1p(x_cf.var(0)) for x_cf in (one_cf, other_cf)]
    top_f = np.argsort(-one_cf.mean(0))[:N_CORRELATED]
    pairs = np.triu_indices(len(top_f), 1)
    matrices = []
    for x_cf in (one_cf, other_cf):
        log_cf = np.log1p(x_cf[:, top_f])
        deviation_f = log_cf.std(0)
        centered_cf = (log_cf - log_cf.mean(0)) / np.where(deviation_f > 0, deviation_f, 1)
        matrices.append((centered_cf.T @ centered_cf / len(log_cf))[pairs])
    return {
        "mean_correlation": _correlation(*mean),
        "variance_correlation": _correlation(*variance),
        "correlation_correlation": _correlation(*matrices),
        "auc": _auc(one_cf, other_cf, seed),
    }


def _correlation(one: Array, other: Array) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def _auc(one_cf: Array, other_cf: Array, seed: int) -> float:
    """Return the area under the curve of the better of two classifiers, by cross-validation."""
    log_cf = np.log1p(np.vstack([one_cf, other_cf]))
    total_c = np.log1p(np.concatenate([one_cf.sum(1), other_cf.sum(1)]))
    input_cf = np.column_stack([log_cf, total_c])
    label_c = np.repeat([0, 1], [len(one_cf), len(other_cf)])
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    classifiers = (
        make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000)),
        RandomForestClassifier(N_TREES, min_samples_leaf=MIN_LEAF, random_state=seed),
    )
    return max(
        float(cross_val_score(each, input_cf, label_c, cv=folds, scoring="roc_auc").mean()) for each in classifiers
    )
