"""`Surrogate`: a fitted model of the cells of a simulator, given its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celldial.estimator.vae import VAE
from celldial.inference import posterior
from celldial.surrogate.calibration import Calibration
from celldial.surrogate.density import LatentDensity
from celldial.surrogate.parameters import ParameterSpace
from celldial.utils.random import isolate_rng
from celldial.utils.threads import limit_threads
from celldial.utils.validation import check_integer
from celldial.utils.warnings import warn

__all__ = ["Surrogate"]


@dataclass(frozen=True)
class Surrogate:
    """A fast substitute of a simulator. Create it with `celldial.surrogate.fit`.

    Parameters
    ----------
    model
        The model of counts given latent states.
    space
        Parameters of the simulator with their ranges.
    density
        Distribution of latent states and library sizes given the parameters.
    var
        The simulator's table of features.
    calibration
        Calibration of inferred parameters; None if there were too few settings.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import celldial
    >>> def simulator(depth):
    ...     return celldial.datasets.simulate_multiome(60, 60, 80, depth=depth)
    >>> settings = pd.DataFrame({"depth": np.linspace(0.5, 2, 6)})
    >>> surrogate = celldial.surrogate.fit(simulator, settings, max_epochs=2, calibrate=False, progress=False)
    >>> surrogate.sample({"depth": 1.2}, 100).shape
    (100, 140)
    """

    model: VAE
    space: ParameterSpace
    density: LatentDensity
    var: pd.DataFrame
    calibration: Calibration | None = None

    def sample(self, parameters: Mapping[str, float], n: int, *, seed: int | None = None) -> AnnData:
        """Return new cells, as the simulator would return them.

        Parameters
        ----------
        parameters
            Value of each parameter.
        n
            Number of cells.
        seed
            Seed of the random numbers; that of the model by default.

        Returns
        -------
        anndata.AnnData
            Counts in ``X`` (CSR, float32), the parameters in ``obs``, and the ``var`` of the simulator.

        Raises
        ------
        KeyError
            A parameter is missing or unknown.
        ValueError
            `n` is less than 1, or a parameter is not finite.

        Warns
        -----
        UserWarning
            A parameter is outside the range of the simulations.
        """
        check_integer("n", n)
        value_k = self.space.read(parameters)
        for key in self.space.outside(value_k):
            lowest, highest = self.space.ranges[key]
            warn(
                f"parameter {key!r} is {parameters[key]:g}, and the simulations have {lowest:g} to {highest:g}: the "
                "surrogate extrapolates, so run the simulator there, too"
            )
        names, module = self.model.schema_.feature_names, self.model.module_
        product = n * max(map(len, names.values())) * self.model.n_hidden
        with isolate_rng(self.model.seed if seed is None else seed), limit_threads(product):
            value_cd = self.density.sample(self.space.scaled(value_k).float().expand(n, -1))
            state_cz, log_size_cm = value_cd.split([module.n_states, len(names)], 1)
            size_cm = (log_size_cm.exp() - 1).round().clamp_min(0).numpy()
            library_size = {name: size_cm[:, m] for m, name in enumerate(names)}
            none_ck = posterior.Covariates(np.empty((n, 0), dtype=np.int64), np.empty((n, 0), dtype=np.float32))
            counts = posterior.sample_counts(module, state_cz.contiguous().numpy(), none_ck, library_size)
        joint = sparse.hstack([counts[name] for name in names], format="csr")
        known = pd.Index([feature for features in names.values() for feature in features])
        kept = self.var.index[self.var.index.isin(known)]
        if not kept.equals(known):
            joint = joint[:, known.get_indexer(kept)]
        index = pd.RangeIndex(n).map("sample_{}".format)
        obs = pd.DataFrame(dict(zip(self.space.names, value_k.tolist(), strict=True)), index=index)
        return AnnData(joint, obs, self.var.loc[kept].copy())
