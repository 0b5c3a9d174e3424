"""`VAE`, the estimator: the only place that writes to an AnnData."""

from __future__ import annotations

import copy
import importlib.metadata
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, ImplicitModificationWarning
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from celldial import axes, checks, inference, storage, train
from celldial.data import Cells, choose_cells
from celldial.inference import Covariates, Posterior
from celldial.module import Module
from celldial.schema import Schema, covariate_table
from celldial.settings import seeded

__all__ = ["VAE"]

NO_PART = "they take no part in training and get the prior as their posterior"


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
    parameters_ : dict of str to object
        The parameters that `fit` was called with; later changes of the parameters wait for the next `fit`.
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

    parameters_: dict[str, Any]
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
        checks.check_parameters(self.get_params(deep=False))
        checks.check_options(max_epochs, batch_size, key_added)
        schema = Schema.from_anndata(
            adata,
            layer=self.layer,
            batch_key=self.batch_key,
            categorical_covariate_keys=self.categorical_covariate_keys,
            continuous_covariate_keys=self.continuous_covariate_keys,
        )
        cells = Cells.from_anndata(adata, schema)
        checks.check_enough(schema, cells, self.n_latent)
        checks.warn_of_empty(adata, cells, NO_PART)
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
        embedding_cz = inference.infer(module, cells).mean
        self.parameters_, self.schema_, self.module_, self.history_ = parameters_of(self), schema, module, history
        library_size_c = torch.stack(list(cells.library_size.values())).sum(0)[train_c]
        self.library_size_quantiles_ = np.quantile(library_size_c.numpy(), np.linspace(0, 1, 101))
        self._write(adata, embedding_cz, key_added)
        return self

    def fit_transform(self, adata: AnnData, **options: Any) -> np.ndarray:
        """Fit the model (see `fit` for the options) and return the embedding, shape ``(cells, n_latent)``."""
        self.fit(adata, **options)
        embedding_cz: np.ndarray = adata.obsm[adata.uns["celldial"]["key_added"]]
        return embedding_cz.copy()

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
        checks.check_parameters(self.get_params(deep=False))
        checks.check_whole("max_epochs", max_epochs)
        checks.check_options(max_epochs, batch_size, key_added)
        cells = Cells.from_anndata(adata, self.schema_)
        checks.check_any_count(cells)
        checks.warn_of_empty(adata, cells, NO_PART)
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
            module = copy.deepcopy(self.module_)
            history = train.fit(module, cells, train_c, validation_c, plan, self.seed + n_epochs_before)
        embedding_cz = inference.infer(module, cells).mean
        self.module_ = module
        # Without validation cells, now or then, the quantities of validation are missing there.
        missing_before, missing_now = ([math.nan] * len(part["seconds"]) for part in (self.history_, history))
        self.history_ = {
            name: self.history_.get(name, missing_before) + history.get(name, missing_now)
            for name in self.history_ | history
        }
        self.history_["kept"][:n_epochs_before] = [0.0] * n_epochs_before
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
        checks.warn_of_empty(adata, cells, "they get the prior as their posterior")
        return inference.infer(self.module_, cells)

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
        checks.check_any_count(cells)
        filled = cells.select((~cells.empty_c).nonzero()[:, 0]).to(inference.ready(self.module_))
        with seeded(self.seed):
            return train.evaluate(self.module_, filled)["elbo_validation"]

    # --- From latent states to cells ------------------------------------------------------------------------------

    def decode(
        self,
        z: np.ndarray,
        covariates: Mapping[str, Any] | pd.DataFrame | None = None,
        *,
        library_size: float = 1e4,
    ) -> np.ndarray:
        """Compute the expected expression at given latent states; with zero inflation, before counts are lost.

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
        z_cz = checks.check_latent_states(z, self.module_.latent.n_latent)
        encoded = self.schema_.covariates({} if covariates is None else covariates, n_cells=len(z_cz))
        return inference.expression(self.module_, z_cz, Covariates(*encoded), library_size)

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

        With zero inflation, that is the expression before counts are lost.

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
            if self.schema_.batch_key is None:
                raise ValueError(
                    "transform_batch names a batch, and the model was fitted without batch_key: give a dict from "
                    "covariate to value"
                )
            transform_batch = {self.schema_.batch_key: transform_batch}
        mean_cz = inference.infer(self.module_, Cells.from_anndata(adata, self.schema_)).mean
        covariates = Covariates(*self.schema_.covariates(adata, transform_batch))
        columns = None if genes is None else names.get_indexer(wanted)
        expression_cf = inference.expression(self.module_, mean_cz, covariates, library_size, columns)
        table = pd.DataFrame(expression_cf, index=adata.obs_names, columns=wanted)
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
        checks.check_whole("n", n)
        covariates = {} if covariates is None else covariates
        encoded = Covariates(*self.schema_.covariates(covariates, n_cells=n))
        with seeded(self.seed if seed is None else seed):
            z_cz, counts = inference.draw_cells(self.module_, encoded, self.library_size_quantiles_)
        obs = covariate_table(covariates, n)[[*self.schema_.categories, *self.schema_.continuous]]
        obs = obs.set_axis(pd.RangeIndex(n).map("sample_{}".format))
        return AnnData(counts, obs, pd.DataFrame(index=list(self.feature_names_)), obsm={"z": z_cz})

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
        highest mean. Written: positions, mean and band as arrays in ``adata.uns["latent_traverse"]["axis_<axis>"]``.
        """
        self._check_fitted()
        checks.check_whole("axis", axis, 0)
        n_latent = self.module_.latent.n_latent
        if axis >= n_latent:
            raise ValueError(f"axis is {axis}: it must be from 0 to {n_latent - 1}, the model's latent coordinates")
        checks.check_whole("n_steps", n_steps, 2)
        checks.check_whole("n_cells", n_cells)
        if not 0 <= span[0] < span[1] <= 1:
            raise ValueError(f"span is {span}: it must be two quantiles, from low to high, such as (0.01, 0.99)")
        cells = Cells.from_anndata(adata, self.schema_)
        checks.check_any_count(cells)
        posterior = inference.infer(self.module_, cells)
        random = np.random.default_rng(self.seed)
        filled = np.flatnonzero(~cells.empty_c.numpy())
        chosen = np.sort(random.choice(filled, min(n_cells, len(filled)), replace=False))
        mean_cz, deviation_cz = posterior.mean[chosen], posterior.standard_deviation[chosen]
        covariates = Covariates(cells.category_ck[chosen].numpy(), cells.continuous_ck[chosen].numpy())
        traversal = axes.traverse(
            mean_cz + deviation_cz * random.standard_normal(mean_cz.shape, dtype=np.float32),
            axis,
            axes.coordinate_path(posterior.mean[filled], axis, span, n_steps),
            lambda z_cz: inference.expression(self.module_, z_cz, covariates, library_size),
        )
        about = {"axis": f"latent coordinate {axis}", "library_size": library_size}
        stored = {
            **about,
            "position": traversal.position_s,
            "feature_names": np.array(self.feature_names_, dtype=object),
            "mean": traversal.mean_sf,
            "lower": traversal.lower_sf,
            "upper": traversal.upper_sf,
        }
        with writable(adata):
            adata.uns["latent_traverse"] = {**adata.uns.get("latent_traverse", {}), f"axis_{axis}": stored}
        # Copies: what is done to the one must not change the other.
        return AnnData(
            traversal.mean_sf.copy(),
            obs=pd.DataFrame({"position": traversal.position_s.copy()}, pd.RangeIndex(n_steps).map("step_{}".format)),
            var=pd.DataFrame(
                {"effect_size": traversal.effect_size_f, "peak_step": traversal.mean_sf.argmax(0)},
                index=list(self.feature_names_),
            ),
            layers={
                "lower": traversal.lower_sf.copy(),
                "upper": traversal.upper_sf.copy(),
                "log2_fold_change": traversal.log2_fold_change_sf,
            },
            uns=about,
        )

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
            "parameters": self.parameters_,
            "schema": self.schema_.to_dict(),
            # JSON has no NaN, which stands where an epoch had no validation cells.
            "history": {k: [None if math.isnan(v) else v for v in values] for k, values in self.history_.items()},
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
            model.parameters_ = about["parameters"]
            model.schema_ = Schema.from_dict(about["schema"])
            model.module_ = model._build(model.schema_)
            model.module_.load_state_dict(tensors)
            model.history_ = {
                k: [math.nan if v is None else v for v in values] for k, values in about["history"].items()
            }
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

    def _write(self, adata: AnnData, embedding_cz: np.ndarray, key_added: str) -> None:
        with writable(adata):
            adata.obsm[key_added] = embedding_cz
            adata.uns["celldial"] = {
                "version": importlib.metadata.version("celldial"),
                "key_added": key_added,
                "parameters": self.parameters_,
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


@contextmanager
def writable(adata: AnnData) -> Iterator[None]:
    """Let a view become an AnnData of its own without a warning: that is what writing to it asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        yield
