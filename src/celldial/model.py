"""`VAE`, the estimator: the only place that writes to an AnnData."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyro
import torch
from anndata import AnnData, ImplicitModificationWarning
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor

from celldial import axes, storage, train
from celldial.data import Cells, minibatches, split
from celldial.likelihoods import LIKELIHOODS
from celldial.module import Module
from celldial.schema import Schema, covariate_table
from celldial.settings import seeded, settings

__all__ = ["VAE", "Posterior"]

logger = logging.getLogger("celldial")

INFERENCE_BATCH_SIZE = 1024


class Posterior(NamedTuple):
    """What the model believes of each cell's latent state."""

    mean: np.ndarray
    standard_deviation: np.ndarray


class VAE(BaseEstimator):
    r"""Conditional variational autoencoder for single-cell counts.

    Each cell has a latent state :math:`z \sim N(0, I)`; a neural network decodes it, together with the covariates, to
    the share of each gene in the cell's expression; the counts scatter around library size times share. Fitting writes
    the mean of every cell's posterior to ``adata.obsm["X_celldial"]``, ready for ``scanpy.pp.neighbors``.

    Parameters
    ----------
    n_latent
        Number of latent coordinates.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers of encoder and decoder.
    likelihood
        How counts scatter around their mean: ``"negative_binomial"`` (one dispersion per gene), ``"poisson"``, or
        ``"zero_inflated_negative_binomial"``.
    batch_key
        Column of ``adata.obs`` with the batch, whose effect is to be kept out of the latent state.
    categorical_covariate_keys, continuous_covariate_keys
        Further columns of ``adata.obs`` that the decoder is told, and that decoding can set to another value.
    layer
        Layer that holds raw counts; ``None`` for ``adata.X``.
    dropout_rate
        Share of the counts that is hidden from the encoder during training, against overfitting.
    learning_rate
        Peak of the learning rate.
    seed
        Of all randomness. The same seed, data and number of threads give the same result, bit by bit on a CPU.

    Attributes
    ----------
    schema_ : Schema
        Features, layer and covariates that `fit` saw.
    module_ : Module
        The networks.
    history_ : dict of str to list of float
        Quantities after each epoch, in nats per cell; see `celldial.train.fit`.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114; Lopez et al. (2018), Deep generative
    modeling for single-cell transcriptomics, doi:10.1038/s41592-018-0229-2.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE(seed=0).fit(adata, max_epochs=2, progress=False)
    >>> adata.obsm["X_celldial"].shape
    (700, 10)
    """

    schema_: Schema
    module_: Module
    history_: dict[str, list[float]]
    library_size_quantiles_: np.ndarray

    def __init__(
        self,
        n_latent: int = 10,
        n_hidden: int = 128,
        n_layers: int = 1,
        *,
        likelihood: Literal["negative_binomial", "poisson", "zero_inflated_negative_binomial"] = "negative_binomial",
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        layer: str | None = None,
        dropout_rate: float = 0.2,
        learning_rate: float = 8e-3,
        seed: int = 0,
    ) -> None:
        self.n_latent = n_latent
        self.n_hidden = n_hidden
        self.n_layers = n_layers
        self.likelihood = likelihood
        self.batch_key = batch_key
        self.categorical_covariate_keys = categorical_covariate_keys
        self.continuous_covariate_keys = continuous_covariate_keys
        self.layer = layer
        self.dropout_rate = dropout_rate
        self.learning_rate = learning_rate
        self.seed = seed

    # --- Fitting --------------------------------------------------------------------------------------------------

    def fit(
        self,
        adata: AnnData,
        *,
        max_epochs: int | Literal["auto"] = "auto",
        batch_size: int | Literal["auto"] = "auto",
        validation_size: float = 0.1,
        validation_cells: Sequence[Any] | np.ndarray | None = None,
        early_stopping: bool = True,
        key_added: str = "X_celldial",
        progress: bool = True,
    ) -> VAE:
        """Fit the model, and write the embedding to the AnnData.

        Parameters
        ----------
        adata
            Cells with raw counts. Cells without any count take no part and get the prior.
        max_epochs
            Passes over the cells; ``"auto"`` chooses by their number.
        batch_size
            Cells in a minibatch; ``"auto"`` is 128, or less for few cells.
        validation_size
            Share of the cells, chosen at random, that is kept for validation: for early stopping and `history_`.
        validation_cells
            The cells to validate on instead: names, or a boolean mask.
        early_stopping
            Stop when the validation ELBO has not become better for a quarter of the epochs (10 at least). Whether it
            stops or not, the weights of the epoch with the best validation ELBO are kept.
        key_added
            Where in ``adata.obsm`` the embedding goes.
        progress
            Whether to show a progress bar: epoch, ELBO and time left.

        Returns
        -------
        The model itself. Written: ``adata.obsm[key_added]``, the posterior means, shape ``(cells, n_latent)``; and
        ``adata.uns["celldial"]``: parameters, schema and history.

        Raises
        ------
        ValueError, TypeError, KeyError
            Something about the arguments, counts or covariates; the message says what, where, and what to do. The
            AnnData is then as it was.
        FloatingPointError
            The ELBO became infinite or NaN.

        Notes
        -----
        Ctrl-C ends training early: the model has the weights of the best epoch so far, and all is written.
        """
        self._check_parameters()
        check_options(max_epochs, batch_size, key_added)
        schema = Schema.from_anndata(
            adata,
            layer=self.layer,
            batch_key=self.batch_key,
            categorical_covariate_keys=self.categorical_covariate_keys,
            continuous_covariate_keys=self.continuous_covariate_keys,
        )
        cells = Cells.from_anndata(adata, schema)
        check_size(schema, cells, self.n_latent)
        warn_of_empty(adata, cells, "they take no part in training and get the prior as their posterior")
        train_c, validation_c = choose_cells(adata, cells, validation_size, validation_cells, self.seed)
        plan = train.Plan(
            max_epochs=train.choose_max_epochs(len(train_c)) if max_epochs == "auto" else max_epochs,
            batch_size=train.choose_batch_size(len(train_c)) if batch_size == "auto" else batch_size,
            learning_rate=self.learning_rate,
            early_stopping=early_stopping,
            progress=progress,
        )
        with seeded(self.seed):
            module = self._build(schema)
            module.initialise(cells.select(train_c))
            history = train.fit(module, cells, train_c, validation_c, plan, self.seed)
        embedding_cz = infer(module, cells).mean
        self.schema_, self.module_, self.history_ = schema, module, history
        self.library_size_quantiles_ = np.quantile(total_counts(cells)[train_c.numpy()], np.linspace(0, 1, 101))
        self._write(adata, embedding_cz, key_added)
        return self

    def fit_transform(self, adata: AnnData, **options: Any) -> np.ndarray:
        """Fit the model (see `fit` for the options) and return the embedding, shape ``(cells, n_latent)``."""
        return self.fit(adata, **options).transform(adata)

    def partial_fit(
        self,
        adata: AnnData,
        *,
        max_epochs: int = 10,
        batch_size: int | Literal["auto"] = "auto",
        validation_size: float = 0.1,
        validation_cells: Sequence[Any] | np.ndarray | None = None,
        early_stopping: bool = True,
        key_added: str = "X_celldial",
        progress: bool = True,
    ) -> VAE:
        """Go on fitting from the present weights, on the same cells or on new ones of the same features and covariates.

        The learning rate peaks at a quarter of `learning_rate`, and the KL term has its full weight from the start.
        On a model that was not fitted yet this is `fit`. The history goes on.

        Parameters
        ----------
        adata
            Cells with raw counts.
        max_epochs
            Further passes over the cells.
        batch_size, validation_size, validation_cells, early_stopping, key_added, progress
            As in `fit`.

        Returns
        -------
        The model itself. Written: the same as by `fit`.

        Raises
        ------
        ValueError, TypeError, KeyError, FloatingPointError
            As `fit`; also where features or categories are not those of the model.
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(
                adata,
                max_epochs=max_epochs,
                batch_size=batch_size,
                validation_size=validation_size,
                validation_cells=validation_cells,
                early_stopping=early_stopping,
                key_added=key_added,
                progress=progress,
            )
        self._check_parameters()
        check_whole("max_epochs", max_epochs)
        check_options(max_epochs, batch_size, key_added)
        cells = Cells.from_anndata(adata, self.schema_)
        check_any_count(cells)
        warn_of_empty(adata, cells, "they take no part in training and get the prior as their posterior")
        train_c, validation_c = choose_cells(adata, cells, validation_size, validation_cells, self.seed)
        plan = train.Plan(
            max_epochs=max_epochs,
            batch_size=train.choose_batch_size(len(train_c)) if batch_size == "auto" else batch_size,
            learning_rate=self.learning_rate / 4,
            warm_up=False,
            early_stopping=early_stopping,
            progress=progress,
        )
        n_epochs_before = len(self.history_["seconds"])
        with seeded(self.seed + n_epochs_before):
            # A copy, so that a failure leaves the fitted model as it was.
            module = self._build(self.schema_)
            module.load_state_dict(self.module_.state_dict())
            history = train.fit(module, cells, train_c, validation_c, plan, self.seed + n_epochs_before)
        embedding_cz = infer(module, cells).mean
        self.module_ = module
        # Without validation cells, now or then, the quantities of validation are missing there.
        missing_before, missing_now = ([math.nan] * len(part["seconds"]) for part in (self.history_, history))
        self.history_ = {
            name: self.history_.get(name, missing_before) + history.get(name, missing_now)
            for name in self.history_ | history
        }
        self._write(adata, embedding_cz, key_added)
        return self

    # --- From cells to latent states ------------------------------------------------------------------------------

    def transform(self, adata: AnnData) -> np.ndarray:
        """Embed cells: the mean of each cell's posterior, float32, shape ``(cells, n_latent)``.

        Parameters
        ----------
        adata
            Any cells with the features of the model (in any order, at least half of them) and its covariates. Cells
            without any count get the prior mean, 0, and a warning says how many they are.
        """
        return self.posterior(adata).mean

    def posterior(self, adata: AnnData) -> Posterior:
        """Mean and standard deviation of each cell's latent state, float32, each of shape ``(cells, n_latent)``.

        Cells without any count get the prior, mean 0 and standard deviation 1, and a warning says how many they are.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> mean, standard_deviation = model.posterior(adata)
        """
        self._check_fitted()
        cells = Cells.from_anndata(adata, self.schema_)
        warn_of_empty(adata, cells, "they get the prior as their posterior")
        return infer(self.module_, cells)

    def score(self, adata: AnnData, y: None = None) -> float:
        """Mean ELBO of cells that were held out, in nats per cell; higher is better.

        One latent sample per cell is drawn, from `seed`; the KL term has full weight. Cells without any count are left
        out.

        Parameters
        ----------
        adata
            Cells that `fit` did not see.
        y
            Ignored; scikit-learn's convention.
        """
        self._check_fitted()
        cells = Cells.from_anndata(adata, self.schema_)
        check_any_count(cells)
        with seeded(self.seed):
            terms = train.evaluate(self._module(), cells.select((~cells.empty_c).nonzero()[:, 0]).to(self._device))
        return terms["elbo_validation"]

    # --- From latent states to cells ------------------------------------------------------------------------------

    def decode(
        self,
        z: np.ndarray,
        covariates: Mapping[str, Any] | pd.DataFrame | None = None,
        *,
        library_size: float = 1e4,
    ) -> np.ndarray:
        """Compute the expected expression at given latent states.

        Parameters
        ----------
        z
            Latent states, shape ``(cells, n_latent)``.
        covariates
            Covariate to one value for all cells, or to one a cell; or a table such as ``adata.obs``.
        library_size
            What the expression of a cell sums to.

        Returns
        -------
        Expression, float32, shape ``(cells, features)``, in counts per `library_size`.
        """
        self._check_fitted()
        z_cz = torch.from_numpy(np.array(z, dtype=np.float32, ndmin=2))
        if z_cz.ndim != 2 or z_cz.shape[1] != self.n_latent:
            raise ValueError(f"z has the shape {tuple(np.shape(z))}: it must be (cells, {self.n_latent})")
        if not z_cz.isfinite().all():
            raise ValueError("z has values that are NaN or infinite")
        category_ck, continuous_ck = self.schema_.covariates(
            {} if covariates is None else covariates, n_cells=len(z_cz)
        )
        return self._decode(z_cz, category_ck, continuous_ck) * np.float32(library_size)

    def denoise(
        self,
        adata: AnnData,
        genes: Sequence[str] | str | None = None,
        *,
        key_added: str | None = None,
        transform_batch: Any = None,
        library_size: float = 1e4,
    ) -> pd.DataFrame:
        """Compute the expected expression of each cell: what the decoder makes of its posterior mean.

        Parameters
        ----------
        adata
            Cells to denoise.
        genes
            Names of the features wanted; all by default, which for many cells takes much memory.
        key_added
            Where to write the result: with all features ``adata.layers[key_added]`` (where those are the features of
            `adata`, in that order), otherwise a table in ``adata.obsm[key_added]``. By default it is not written.
        transform_batch
            Decode as if all cells were of this batch; or a dict from covariate to value, for any covariate.
        library_size
            What the expression of a cell sums to, over all features.

        Returns
        -------
        Expression, cells × features, in counts per `library_size`.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> model.denoise(adata, genes=["CD3D", "CD79A"]).shape
        (700, 2)
        """
        self._check_fitted()
        names = pd.Index(self.feature_names_)
        wanted = names if genes is None else pd.Index([genes] if isinstance(genes, str) else genes)
        unknown = wanted[~wanted.isin(names)]
        if len(unknown):
            raise KeyError(f"the model has no gene {unknown[0]!r} ({len(unknown)} of those asked for are unknown)")
        if wanted.has_duplicates:
            raise ValueError(f"gene {wanted[wanted.duplicated()][0]!r} is asked for more than once")
        if not isinstance(transform_batch, Mapping | None):
            if self.batch_key is None:
                raise ValueError(
                    "transform_batch names a batch, and the model was fitted without batch_key: give a dict from "
                    "covariate to value"
                )
            transform_batch = {self.batch_key: transform_batch}
        seen = Cells.from_anndata(adata, self.schema_)
        category_ck, continuous_ck = self.schema_.covariates(adata, transform_batch)
        columns = None if genes is None else names.get_indexer(wanted)
        z_cz = torch.from_numpy(infer(self.module_, seen).mean)
        expression_cf = self._decode(z_cz, category_ck, continuous_ck, columns)
        table = pd.DataFrame(expression_cf * np.float32(library_size), index=adata.obs_names, columns=wanted)
        if key_added is not None:
            with writable(adata):
                if list(adata.var_names) == list(wanted):
                    adata.layers[key_added] = table.to_numpy(copy=True)
                else:
                    adata.obsm[key_added] = table.copy()
        return table

    def sample(
        self,
        n: int,
        covariates: Mapping[str, Any] | pd.DataFrame | None = None,
        *,
        seed: int | None = None,
    ) -> AnnData:
        """Draw new cells: latent states from the prior, library sizes as in the cells of `fit`, counts from the model.

        Parameters
        ----------
        n
            Number of cells.
        covariates
            As in `decode`.
        seed
            Of the draw; the model's by default.

        Returns
        -------
        Counts in ``X`` (CSR, float32), the latent states in ``obsm["z"]``, the covariates in ``obs``.
        """
        self._check_fitted()
        check_whole("n", n)
        covariates = {} if covariates is None else covariates
        category_ck, continuous_ck = self.schema_.covariates(covariates, n_cells=n)
        counts, states = [], []
        with seeded(self.seed if seed is None else seed), torch.no_grad():
            quantiles = torch.from_numpy(self.library_size_quantiles_).float()
            position_c = torch.rand(n) * (len(quantiles) - 1)
            low_c = position_c.long()
            library_size_c = torch.lerp(quantiles[low_c], quantiles[low_c + 1], position_c - low_c)
            for start in range(0, n, INFERENCE_BATCH_SIZE):
                part = slice(start, start + INFERENCE_BATCH_SIZE)
                cells = self._without_counts(category_ck[part], continuous_ck[part], library_size_c[part])
                z_cz = self.module_.latent.prior(len(cells), like=cells.continuous_ck).sample()
                (observation,) = self._module().decode(z_cz, cells).values()
                counts.append(sparse.csr_matrix(observation.sample().cpu().numpy()))
                states.append(z_cz.cpu().numpy())
        obs = covariate_table(covariates, n)[[*self.schema_.categories, *self.schema_.continuous]]
        obs = obs.set_axis(pd.RangeIndex(n).map("sample_{}".format))
        var = pd.DataFrame(index=list(self.feature_names_))
        return AnnData(sparse.vstack(counts, format="csr"), obs, var, obsm={"z": np.concatenate(states)})

    def latent_traverse(
        self,
        adata: AnnData,
        axis: int = 0,
        *,
        n_steps: int = 25,
        span: tuple[float, float] = (0.01, 0.99),
        n_cells: int = 200,
        library_size: float = 1e4,
    ) -> AnnData:
        """Turn one latent coordinate like a knob, and see which genes change.

        For a random sample of cells, latent states are drawn from their posteriors, the coordinate is set to each
        step in turn, and the result is decoded.

        Parameters
        ----------
        adata
            Cells to start from.
        axis
            The coordinate to turn, from 0.
        n_steps
            Number of steps.
        span
            From which to which quantile of the cells on this coordinate.
        n_cells
            Number of cells in the sample.
        library_size
            What the expression of a cell sums to.

        Returns
        -------
        Steps × features: ``X`` the mean over cells, ``layers["lower"]`` and ``layers["upper"]`` the band of 90 % of the
        cells, ``layers["log2_fold_change"]`` the mean against the first step, ``obs["position"]`` the coordinate,
        ``var["effect_size"]`` the largest less the smallest log2 fold change, ``var["peak_step"]`` the step of the
        highest mean. Written: the same as arrays in ``adata.uns["latent_traverse"]["axis_<axis>"]``.
        """
        self._check_fitted()
        check_whole("axis", axis, 0)
        if axis >= self.n_latent:
            raise ValueError(
                f"axis is {axis}: it must be from 0 to {self.n_latent - 1}, the model's latent coordinates"
            )
        check_whole("n_cells", n_cells)
        if n_steps < 2 or not 0 <= span[0] < span[1] <= 1:
            raise ValueError(
                f"n_steps={n_steps}, span={span}: at least 2 steps, and quantiles from low to high, are needed"
            )
        cells = Cells.from_anndata(adata, self.schema_)
        check_any_count(cells)
        mean_cz, deviation_cz = infer(self.module_, cells)
        random = np.random.default_rng(self.seed)
        candidates = np.flatnonzero(~cells.empty_c.numpy())
        chosen = np.sort(random.choice(candidates, min(n_cells, len(candidates)), replace=False))
        z_cz = mean_cz[chosen] + deviation_cz[chosen] * random.standard_normal(mean_cz[chosen].shape, dtype=np.float32)
        category_ck, continuous_ck = cells.category_ck[chosen].numpy(), cells.continuous_ck[chosen].numpy()
        result = axes.traverse(
            z_cz,
            axis,
            axes.coordinate_path(mean_cz[candidates], axis, span, n_steps),
            lambda z: self._decode(torch.from_numpy(z), category_ck, continuous_ck) * np.float32(library_size),
        )
        log2_sf = np.log2(result.mean_sf / result.mean_sf[0])
        traversal = AnnData(
            result.mean_sf,
            obs=pd.DataFrame({"position": result.position_s}, index=pd.RangeIndex(n_steps).map("step_{}".format)),
            var=pd.DataFrame(
                {"effect_size": np.ptp(log2_sf, axis=0), "peak_step": result.mean_sf.argmax(0)},
                index=list(self.feature_names_),
            ),
            layers={"lower": result.lower_sf, "upper": result.upper_sf, "log2_fold_change": log2_sf},
            uns={"axis": f"latent coordinate {axis}", "library_size": library_size},
        )
        stored = {
            "axis": f"latent coordinate {axis}",
            "library_size": library_size,
            # Copies: what happens to the AnnData returned is no change to this one.
            "position": result.position_s.copy(),
            "feature_names": np.array(self.feature_names_, dtype=object),
            "mean": result.mean_sf.copy(),
            "lower": result.lower_sf.copy(),
            "upper": result.upper_sf.copy(),
        }
        with writable(adata):
            adata.uns["latent_traverse"] = {**adata.uns.get("latent_traverse", {}), f"axis_{axis}": stored}
        return traversal

    # --- Keeping a model ------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one file, JSON and safetensors, that loading runs no code from.

        The file appears whole or not at all; one that is there is replaced.

        Parameters
        ----------
        path
            Where to; by custom ``NAME.celldial``.
        """
        self._check_fitted()
        about = {
            "celldial_version": importlib.metadata.version("celldial"),
            "parameters": parameters_of(self),
            "schema": self.schema_.to_dict(),
            "history": self.history_,
            "library_size_quantiles": self.library_size_quantiles_.tolist(),
        }
        storage.write(Path(path), about, self.module_.state_dict())

    @classmethod
    def load(cls, path: str | Path) -> VAE:
        """Read a model that `save` wrote, with this version or an earlier one.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is no model, is damaged, or was written by a later version.
        """
        about, tensors = storage.read(Path(path))
        # Seeded, because weights are drawn before they are replaced: the caller's random numbers stay as they are.
        with storage.damaged_if_this_fails(path), seeded(0):
            model = cls(**about["parameters"])
            model.schema_ = Schema.from_dict(about["schema"])
            model.module_ = model._build(model.schema_)
            model.module_.load_state_dict(tensors)
            model.history_ = about["history"]
            model.library_size_quantiles_ = np.array(about["library_size_quantiles"])
        model.module_.eval()
        return model

    # --- Inside ---------------------------------------------------------------------------------------------------

    @property
    def feature_names_(self) -> tuple[str, ...]:
        """Names of the features that the model decodes, in its order."""
        (names,) = self.schema_.feature_names.values()
        return names

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "module_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("this VAE is not fitted yet: call fit(adata) first, or VAE.load(path)")

    def _check_parameters(self) -> None:
        for name, least in {"n_latent": 1, "n_hidden": 1, "n_layers": 1, "seed": 0}.items():
            check_whole(name, getattr(self, name), least)
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood is {self.likelihood!r}: choose one of {', '.join(map(repr, LIKELIHOODS))}")
        if not (isinstance(self.dropout_rate, Real) and 0 <= self.dropout_rate < 1):
            raise ValueError(f"dropout_rate is {self.dropout_rate!r}: it must be at least 0 and below 1")
        if not (isinstance(self.learning_rate, Real) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate!r}: it must be above 0")

    def _build(self, schema: Schema) -> Module:
        return Module(
            n_features={modality: len(names) for modality, names in schema.feature_names.items()},
            likelihood=dict.fromkeys(schema.feature_names, self.likelihood),
            n_categories=[len(names) for names in schema.categories.values()],
            n_continuous=len(schema.continuous),
            n_latent=self.n_latent,
            n_hidden=self.n_hidden,
            n_layers=self.n_layers,
            dropout_rate=self.dropout_rate,
        )

    @property
    def _device(self) -> torch.device:
        return settings.torch_device

    def _module(self) -> Module:
        return self.module_.to(self._device).eval()

    def _without_counts(
        self, category_ck: np.ndarray, continuous_ck: np.ndarray, library_size_c: Tensor | None = None
    ) -> Cells:
        """Cells to decode into: covariates and library size, but nothing observed."""
        if library_size_c is None:
            library_size_c = torch.ones(len(category_ck))
        return Cells(
            counts={},
            library_size=dict.fromkeys(self.schema_.feature_names, library_size_c),
            category_ck=torch.from_numpy(category_ck),
            continuous_ck=torch.from_numpy(continuous_ck),
        ).to(self._device)

    @torch.no_grad()
    def _decode(
        self, z_cz: Tensor, category_ck: np.ndarray, continuous_ck: np.ndarray, columns: np.ndarray | None = None
    ) -> np.ndarray:
        """Share of each feature in the expression of each cell, of all features or of some columns."""
        parts = []
        for start in range(0, len(z_cz), INFERENCE_BATCH_SIZE):
            part = slice(start, start + INFERENCE_BATCH_SIZE)
            cells = self._without_counts(category_ck[part], continuous_ck[part])
            (observation,) = self._module().decode(z_cz[part].to(self._device), cells).values()
            rate_cf = observation.rate.cpu().numpy()
            parts.append(rate_cf if columns is None else rate_cf[:, columns])
        return np.concatenate(parts)

    def _write(self, adata: AnnData, embedding_cz: np.ndarray, key_added: str) -> None:
        with writable(adata):
            adata.obsm[key_added] = embedding_cz
            adata.uns["celldial"] = {
                "version": importlib.metadata.version("celldial"),
                "key_added": key_added,
                "parameters": parameters_of(self),
                "schema": self.schema_.to_dict(),
                "history": {name: np.array(values) for name, values in self.history_.items()},
            }


def parameters_of(model: VAE) -> dict[str, Any]:
    """Return the constructor's arguments in JSON types."""
    plain: dict[str, Any] = {}
    for name, value in model.get_params(deep=False).items():
        value = value.item() if isinstance(value, np.generic) else value
        plain[name] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    return plain


@torch.no_grad()
def infer(module: Module, cells: Cells) -> Posterior:
    """Mean and standard deviation of each cell's latent state; for cells without any count, those of the prior."""
    device = settings.torch_device
    module, parts = module.to(device).eval(), []
    with pyro.validation_enabled(False):  # not finite values have a better error below
        for minibatch in minibatches(cells, INFERENCE_BATCH_SIZE):
            posterior = module.posterior(minibatch.to(device))
            parts.append((posterior.mean.cpu().numpy(), posterior.stddev.cpu().numpy()))
    mean_cz, deviation_cz = (np.concatenate(part) for part in zip(*parts, strict=True))
    empty_c = cells.empty_c.numpy()  # numpy takes a tensor of one element for a number
    mean_cz[empty_c], deviation_cz[empty_c] = 0, 1
    finite_c = np.isfinite(mean_cz).all(1) & np.isfinite(deviation_cz).all(1)
    if not finite_c.all():
        raise FloatingPointError(
            f"the latent states of {(~finite_c).sum()} of {len(cells)} cells are not finite, so training went wrong: "
            "try a lower learning_rate, and look for features with extreme counts"
        )
    return Posterior(mean_cz, deviation_cz)


def total_counts(cells: Cells) -> np.ndarray:
    """Add up the counts of each cell over all modalities, shape ``(c,)``."""
    return torch.stack(list(cells.library_size.values())).sum(0).numpy()


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value!r}: it must be a whole number of at least {least}")


def check_options(max_epochs: Any, batch_size: Any, key_added: Any) -> None:
    """Raise where an option of `VAE.fit` makes no sense, before anything is read."""
    for name, value in {"max_epochs": max_epochs, "batch_size": batch_size}.items():
        if value != "auto":
            check_whole(name, value)
    if not isinstance(key_added, str):
        raise TypeError(f"key_added is {key_added!r}: it must be a name, such as 'X_celldial'")


def warn_of_empty(adata: AnnData, cells: Cells, consequence: str) -> None:
    """Warn where cells have no count, in the name of the method of `VAE` that calls this."""
    empty_c = cells.empty_c.numpy()
    if empty_c.any():
        warnings.warn(
            f"{empty_c.sum()} of {len(empty_c)} cells have no count (the first is {adata.obs_names[empty_c][0]!r}): "
            f"{consequence}",
            stacklevel=3,
        )


def check_size(schema: Schema, cells: Cells, n_latent: int) -> None:
    """Raise where there is too little to learn from."""
    check_any_count(cells)
    n_features = sum(map(len, schema.feature_names.values()))
    if len(cells) < 2 or n_features < 2:
        raise ValueError(
            f"adata has {len(cells)} cells and {n_features} features: a model is learned from at least two of each"
        )
    if n_latent > n_features:
        raise ValueError(
            f"n_latent={n_latent} is more than the {n_features} features: choose VAE(n_latent={n_features})"
        )


def check_any_count(cells: Cells) -> None:
    """Raise where no cell has a count."""
    if cells.empty_c.all():
        raise ValueError(f"none of the {len(cells)} cells has a single count: check the layer and the features")


def choose_cells(
    adata: AnnData,
    cells: Cells,
    validation_size: float,
    validation_cells: Sequence[Any] | np.ndarray | None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Say which cells to train and which to validate on, as indices; empty cells are neither."""
    filled_c = ~cells.empty_c.numpy()
    filled = np.flatnonzero(filled_c)
    if validation_cells is None:
        train, validation = split(len(filled), validation_size, torch.Generator().manual_seed(seed))
        return torch.from_numpy(filled)[train], torch.from_numpy(filled)[validation]
    held_out_c = np.asarray(validation_cells)
    if held_out_c.dtype != bool:
        unknown = pd.Index(held_out_c).difference(adata.obs_names)
        if len(unknown):
            raise KeyError(
                f"validation_cells names {unknown[0]!r}, which is not in adata.obs_names; give names or a mask"
            )
        held_out_c = adata.obs_names.isin(held_out_c)
    if len(held_out_c) != adata.n_obs:
        raise ValueError(f"validation_cells is a mask of {len(held_out_c)} values for {adata.n_obs} cells")
    train_c, validation_c = np.flatnonzero(filled_c & ~held_out_c), np.flatnonzero(filled_c & held_out_c)
    if len(train_c) == 0:
        raise ValueError("validation_cells holds all cells out: none is left to train on")
    return torch.from_numpy(train_c), torch.from_numpy(validation_c)


@contextmanager
def writable(adata: AnnData) -> Iterator[None]:
    """Let a view become an AnnData of its own without a warning: that is what writing to it asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        yield
