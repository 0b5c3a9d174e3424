"""`VAE`, the estimator: the only place that writes to an AnnData."""

from __future__ import annotations

import copy
import importlib.metadata
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from celldial import axes, checks, export, inference, memory, storage, train
from celldial.covariates import covariate_table
from celldial.data import Cells, check_linked, choose_cells
from celldial.fusion import FusionName
from celldial.inference import Covariates, Posterior
from celldial.joined import joined
from celldial.lookup import noun_of
from celldial.module import Module
from celldial.nn import DecoderName
from celldial.schema import BERNOULLI, Schema
from celldial.settings import seeded, settings

__all__ = ["VAE"]

NO_PART = "they take no part in training and get the prior as their posterior"
PER_TEN_THOUSAND = 1e4
# Larger tables are only made where they are asked for.
MAX_ENTRIES = 25_000_000


class VAE(BaseEstimator):
    r"""Conditional variational autoencoder for single-cell counts, of one modality or of several.

    Each cell has a latent state :math:`z \sim N(0, I)`; for each modality a neural network decodes it, together with
    the covariates, to the share of each feature in what is counted in the cell; the counts scatter around library size
    times share. Fitting writes the mean of every cell's posterior to ``adata.obsm["X_celldial"]``, ready for
    ``scanpy.pp.neighbors``.

    What each feature is stands in ``adata.var["feature_types"]``: genes (``"Gene Expression"``, modality ``"rna"``),
    chromatin peaks (``"Peaks"``, ``"atac"``), proteins (``"Antibody Capture"``, ``"protein"``). Cells may lack a
    modality: one encoder a modality judges the latent state, and those of the modalities that a cell has are fused.
    Every method that takes an AnnData takes a MuData, too.

    Parameters
    ----------
    n_latent
        Number of latent coordinates.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers of encoder and decoder.
    likelihood
        How counts scatter around their mean: ``"negative_binomial"`` (one dispersion per feature), ``"poisson"``,
        ``"zero_inflated_negative_binomial"``, or ``"bernoulli"`` (whether there is a count at all; counts above 1 are
        taken as 1, and each cell's depth is accounted for: see `celldial.likelihoods.Bernoulli`). One for all
        modalities, or a dict by modality. By default Bernoulli for ``"atac"``, negative binomial for others;
        ``{"atac": "poisson"}`` models fragment counts.
    modalities
        Name of each modality to a value of ``adata.var[modality_key]``, or to ``"obsm/key"`` for a matrix or DataFrame
        in ``adata.obsm``; features of other values are left out. By default all, which must be of known types.
    modality_key
        Column of ``adata.var`` that says what each feature is. Without it all features are genes, or peaks where
        `likelihood` is ``"bernoulli"``.
    presence_keys
        Modality to the boolean column of ``adata.obs`` that says which cells have it; by default
        ``"has_<modality>"``, if there is one. Otherwise a cell without a single count of a modality lacks it.
    modality_weights
        Modality to the weight of its log-likelihood in training. By default 1, and less for a modality that is wider
        than the first: the root of the ratio of their numbers of features, lest 50,000 peaks drown 1,000 genes.
    fusion
        How the posteriors of several modalities become one: ``"product"``, ``"mixture"``, ``"mixture_of_products"`` or
        ``"mean"``; see `celldial.fusion.Fusion`.
    decoder
        How the shares depend on the latent coordinates: ``"network"``, or ``"additive"``, where the log of each share
        is a sum over the coordinates (and the covariates), up to the normalisation of the cell. An additive decoder
        has one programme of features for each coordinate, which the coordinate switches on in one direction, so that
        one axis is one programme, at the price of a slightly lower ELBO. Give it coordinates to spare, such as
        ``n_latent=32``: those that the data do not need stay at the prior. Its size does not depend on `n_hidden` and
        `n_layers`, which are then those of the encoders.
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
        Modalities, features, layer and covariates that `fit` saw.
    module_ : Module
        The networks.
    history_ : dict of str to list of float
        Quantities after each epoch, in nats per cell; see `celldial.train.fit`.
    library_size_quantiles_ : dict of str to numpy.ndarray
        Modality to 101 evenly spaced quantiles of the library sizes of the cells trained on.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114; Lopez et al. (2018), Deep generative
    modeling for single-cell transcriptomics, doi:10.1038/s41592-018-0229-2. Additive decoders: Moinfar and Theis
    (2024), Unsupervised deep disentangled representation of single-cell omics, bioRxiv, doi:10.1101/2024.11.06.622266.

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
    library_size_quantiles_: dict[str, np.ndarray]

    def __init__(
        self,
        n_latent: int = 10,
        n_hidden: int = 128,
        n_layers: int = 1,
        *,
        likelihood: str | Mapping[str, str] | None = None,
        modalities: Mapping[str, str] | None = None,
        modality_key: str = "feature_types",
        presence_keys: Mapping[str, str] | None = None,
        modality_weights: Mapping[str, float] | None = None,
        fusion: FusionName = "product",
        decoder: DecoderName = "network",
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
        self.modalities = modalities
        self.modality_key = modality_key
        self.presence_keys = presence_keys
        self.modality_weights = modality_weights
        self.fusion = fusion
        self.decoder = decoder
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
            Cells with raw counts; cells may lack modalities. Cells without any count take no part and get the prior.
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
        MemoryError
            Training would need more memory than there is; the message has the figures.
        FloatingPointError
            The ELBO became infinite or NaN.

        Notes
        -----
        Ctrl-C ends training early: the model has the weights of the best epoch so far, and all is written.
        """
        checks.check_parameters(self.get_params(deep=False))
        checks.check_options(max_epochs, batch_size, key_added)
        table = joined(adata, layer=self.layer, modality_key=self.modality_key)
        schema = Schema.from_anndata(
            table,
            layer=self.layer,
            batch_key=self.batch_key,
            categorical_covariate_keys=self.categorical_covariate_keys,
            continuous_covariate_keys=self.continuous_covariate_keys,
            likelihood=self.likelihood,
            modalities=self.modalities,
            modality_key=self.modality_key,
            presence_keys=self.presence_keys,
        )
        checks.check_modality_weights(self.modality_weights, schema)
        cells = Cells.from_anndata(table, schema)
        checks.check_enough(schema, cells, self.n_latent)
        check_linked(cells)
        checks.warn_of_empty(table, cells, NO_PART)
        train_c, validation_c = choose_cells(table, cells, validation_size, validation_cells, self.seed)
        check_linked(cells, train_c)
        plan = train.Plan(
            max_epochs=train.choose_max_epochs(len(train_c)) if max_epochs == "auto" else max_epochs,
            batch_size=train.choose_batch_size(len(train_c)) if batch_size == "auto" else batch_size,
            learning_rate=self.learning_rate,
            early_stopping=early_stopping,
            progress=progress,
        )
        memory.check(cells, schema.likelihood, self.n_hidden, plan.batch_size, settings.torch_device)
        with seeded(self.seed):
            module = self._build(schema)
            module.initialise(cells.select(train_c))
            history = train.fit(module, cells, train_c, validation_c, plan, self.seed)
        embedding_cz = inference.infer(module, cells).mean
        self.parameters_, self.schema_, self.module_, self.history_ = parameters_of(self), schema, module, history
        totals = {modality: library_size_c[train_c].numpy() for modality, library_size_c in cells.library_size.items()}
        self.library_size_quantiles_ = {
            modality: np.quantile(total_c[total_c > 0], np.linspace(0, 1, 101)) for modality, total_c in totals.items()
        }
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
        table, cells = self._read(adata)
        checks.check_any_count(cells)
        checks.warn_of_empty(table, cells, NO_PART)
        train_c, validation_c = choose_cells(table, cells, validation_size, validation_cells, self.seed)
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
            for name, modality in module.by_modality():
                # What no cell has would be forgotten: nothing holds its weights against their decay.
                modality.requires_grad_(bool(cells.has(name)[train_c].any()))
            history = train.fit(module, cells, train_c, validation_c, plan, self.seed + n_epochs_before)
            module.requires_grad_(True)
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

    def transform(self, adata: AnnData, *, modality: str | None = None, key_added: str | None = None) -> np.ndarray:
        """Embed cells: the mean of each cell's posterior, float32, shape ``(cells, n_latent)``.

        Parameters
        ----------
        adata
            Any cells with the features of the model (in any order, at least half of them) and its covariates, with
            all of the model's modalities or some. Cells without any count get the prior mean, 0, and a warning says how
            many they are.
        modality
            Hear this modality alone, as if nothing else had been measured; by default all that a cell has.
        key_added
            Where in ``adata.obsm`` to write the embedding, such as ``"X_celldial_rna"``. By default it is not written.
        """
        embedding_cz = self._posterior(adata, modality).mean
        if key_added is not None:
            with writable(adata):
                adata.obsm[key_added] = embedding_cz.copy()
        return embedding_cz

    def posterior(self, adata: AnnData, *, modality: str | None = None) -> Posterior:
        """Mean and standard deviation of each cell's latent state, float32, each of shape ``(cells, n_latent)``.

        Cells without any count get the prior, mean 0 and standard deviation 1, and a warning says how many they are.

        Parameters
        ----------
        adata, modality
            As in `transform`.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> mean, standard_deviation = model.posterior(adata)
        """
        return self._posterior(adata, modality)

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
        _, cells = self._read(adata)
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
        modality: str | None = None,
        library_size: float | None = None,
    ) -> np.ndarray:
        """Compute what is expected at given latent states; with zero inflation, before counts are lost.

        Parameters
        ----------
        z
            Latent states, shape ``(cells, n_latent)``.
        covariates
            Covariate to one value for all cells, or to one a cell; or a table such as ``adata.obs``.
        modality
            What to decode to; by default the model's first, ``"rna"`` where it has that.
        library_size
            The total count of a cell in this modality. By default 10,000, or under a Bernoulli likelihood the median of
            the cells of `fit`.

        Returns
        -------
        Expected counts, or probabilities under a Bernoulli likelihood, float32, shape ``(cells, features)``.
        """
        self._check_fitted()
        z_cz = checks.check_latent_states(z, self.module_.latent.n_latent)
        encoded = Covariates(*self.schema_.covariates({} if covariates is None else covariates, n_cells=len(z_cz)))
        name = self._modality(modality)
        return np.concatenate(
            list(inference.expected(self.module_, name, z_cz, encoded, self._library_size(name, library_size)))
        )

    def denoise(
        self,
        adata: AnnData,
        genes: Sequence[str] | str | None = None,
        *,
        modality: str | None = None,
        key_added: str | None = None,
        transform_batch: Any = None,
        library_size: float | None = None,
    ) -> pd.DataFrame:
        """Compute the expected expression of each cell: what the decoder makes of its posterior mean.

        With zero inflation, that is the expression before counts are lost.

        Parameters
        ----------
        adata
            Cells to denoise.
        genes
            Names of the features wanted; all of the modality by default, which for many cells takes much memory.
        modality
            What to decode to; by default the model's first, ``"rna"`` where it has that.
        key_added
            Where to write the result: with all features ``adata.layers[key_added]`` (where those are the features of
            `adata`, in that order), otherwise a table in ``adata.obsm[key_added]``. By default it is not written.
        transform_batch
            Decode as if all cells were of this batch; or a dict from covariate to value, for any covariate.
        library_size
            As in `decode`.

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
        to_decode = self._prepare(adata, modality, None, genes, transform_batch, "transform_batch", library_size)
        table = to_decode.table(self.module_)
        if key_added is not None:
            with writable(adata):
                if isinstance(adata, AnnData) and list(adata.var_names) == list(table.columns):
                    adata.layers[key_added] = table.to_numpy(copy=True)
                else:
                    adata.obsm[key_added] = table.copy()
        return table

    def impute(
        self,
        adata: AnnData,
        modality: str,
        *,
        from_: str | Sequence[str] | None = None,
        features: Sequence[str] | str | None = None,
        batch: Any = None,
        library_size: float | None = None,
        key_added: str | None = None,
        dense: bool = False,
    ) -> pd.DataFrame:
        """Predict one modality from others: which peaks are open, given the RNA of a cell, or the other way round.

        Parameters
        ----------
        adata
            Cells, which may lack `modality` altogether.
        modality
            What to predict.
        from_
            The modality, or modalities, to predict from; others are not looked at. By default all that a cell has,
            which may include `modality` itself.
        features
            Names of the features wanted; all of the modality by default.
        batch
            Predict as if all cells were of this batch; or a dict from covariate to value, for any covariate.
        library_size
            As in `decode`.
        key_added
            Where in ``adata.obsm`` the result goes; ``"imputed_<modality>"`` by default.
        dense
            Whether to make a table of more than 25 million entries (0.1 GB); `impute_to_file` needs no memory for it.

        Returns
        -------
        Expected counts, or probabilities under a Bernoulli likelihood, cells × features, float32. Written: the same to
        ``adata.obsm[key_added]``, as a table where `features` are named, else as an array in the order of the model's
        features of this modality.

        Raises
        ------
        ValueError
            The table would be large and `dense` is False; or no cell has any of `from_`.
        KeyError
            A modality, feature or covariate is not of the model.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.simulate_multiome(200, 100, 300)
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> model.impute(adata, "atac", from_="rna").shape
        (200, 300)
        """
        self._check_fitted()
        to_decode = self._prepare(adata, modality, from_, features, batch, "batch", library_size)
        n_entries = len(to_decode.z_cz) * len(to_decode.names)
        if n_entries > MAX_ENTRIES and not dense:
            raise ValueError(
                f"the table of {len(to_decode.z_cz)} cells × {len(to_decode.names)} features takes "
                f"{4 * n_entries / 1e9:.1f} GB: name the features=[...] you need, use impute_to_file, or "
                "pass dense=True"
            )
        table = to_decode.table(self.module_)
        with writable(adata):
            # A table of very many columns takes minutes to write to a file, an array does not.
            kept = table.to_numpy(copy=True) if features is None else table.copy()
            adata.obsm[f"imputed_{to_decode.modality}" if key_added is None else key_added] = kept
        return table

    def impute_to_file(
        self,
        adata: AnnData,
        modality: str,
        path: str | Path,
        *,
        from_: str | Sequence[str] | None = None,
        features: Sequence[str] | str | None = None,
        batch: Any = None,
        library_size: float | None = None,
    ) -> None:
        """Predict one modality from others, block by block, into an h5ad file; memory does not grow with the cells.

        Parameters
        ----------
        adata, modality, from_, features, batch, library_size
            As in `impute`. Nothing is written to `adata`.
        path
            The file to write, whole or not at all: an AnnData of cells × features with the table in ``X``, float32,
            and the cells' ``obs``. ``anndata.read_h5ad(path, backed="r")`` reads parts of it.
        """
        self._check_fitted()
        to_decode = self._prepare(adata, modality, from_, features, batch, "batch", library_size)
        export.write_blocks(Path(path), to_decode.blocks(self.module_), to_decode.obs, to_decode.names)

    def sample(
        self,
        n: int,
        covariates: Mapping[str, Any] | pd.DataFrame | None = None,
        *,
        seed: int | None = None,
    ) -> AnnData:
        """Draw new cells: latent states from the prior, library sizes as in the cells of `fit`, counts from the model.

        Library sizes of several modalities are drawn independently of each other.

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
        Counts in ``X`` (CSR, float32), the latent states in ``obsm["z"]``, the covariates in ``obs``; with several
        modalities ``var["modality"]`` says which a feature is of.
        """
        self._check_fitted()
        checks.check_whole("n", n)
        covariates = {} if covariates is None else covariates
        encoded = Covariates(*self.schema_.covariates(covariates, n_cells=n))
        with seeded(self.seed if seed is None else seed):
            z_cz, counts = inference.draw_cells(self.module_, encoded, self.library_size_quantiles_)
        obs = covariate_table(covariates, n)[[*self.schema_.categories, *self.schema_.continuous]]
        obs = obs.set_axis(pd.RangeIndex(n).map("sample_{}".format))
        joint = sparse.hstack([counts[modality] for modality in self.schema_.modalities], format="csr")
        var = self._features()
        if self.schema_.modalities != ("rna",):  # so that a model can be fitted to them as to the cells they are like
            var[self.parameters_["modality_key"]] = [
                modality for modality, names in self.schema_.feature_names.items() for _ in names
            ]
        return AnnData(joint, obs, var, obsm={"z": z_cz})

    def latent_traverse(
        self,
        adata: AnnData,
        axis: int = 0,
        *,
        n_steps: int = 25,
        span: tuple[float, float] = (0.01, 0.99),
        n_cells: int = 200,
        library_size: float | None = None,
    ) -> AnnData:
        """Turn one latent coordinate like a knob, and see which genes and peaks change.

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
            As in `decode`; a number is taken for all modalities that are counted, and for no Bernoulli one.

        Returns
        -------
        Steps × features, those of all modalities: ``X`` the mean over cells, ``layers["lower"]`` and
        ``layers["upper"]`` the band of 90 % of the cells, ``layers["log2_fold_change"]`` the mean against the first
        step, ``obs["position"]`` the coordinate, ``var["effect_size"]`` the largest less the smallest log2 fold change,
        ``var["peak_step"]`` the step of the highest mean, and with several modalities ``var["modality"]``. Written:
        positions, mean and band as arrays in ``adata.uns["latent_traverse"]["axis_<axis>"]``.
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
        _, cells = self._read(adata)
        checks.check_any_count(cells)
        posterior = inference.infer(self.module_, cells)
        random = np.random.default_rng(self.seed)
        filled = np.flatnonzero(~cells.empty_c.numpy())
        chosen = np.sort(random.choice(filled, min(n_cells, len(filled)), replace=False))
        mean_cz, deviation_cz = posterior.mean[chosen], posterior.standard_deviation[chosen]
        covariates = Covariates(cells.category_ck[chosen].numpy(), cells.continuous_ck[chosen].numpy())
        depth = {
            name: self._library_size(name, None if likelihood == BERNOULLI else library_size)
            for name, likelihood in self.schema_.likelihood.items()
        }

        def expected(z_cz: np.ndarray) -> np.ndarray:
            blocks = (list(inference.expected(self.module_, name, z_cz, covariates, depth[name])) for name in depth)
            return np.concatenate([np.concatenate(each) for each in blocks], axis=1)

        traversal = axes.traverse(
            mean_cz + deviation_cz * random.standard_normal(mean_cz.shape, dtype=np.float32),
            axis,
            axes.coordinate_path(posterior.mean[filled], axis, span, n_steps),
            expected,
        )
        var = self._features()
        about = {"axis": f"latent coordinate {axis}", "library_size": next(iter(depth.values()))}
        stored: dict[str, Any] = {
            **about,
            "position": traversal.position_s,
            "feature_names": np.array(var.index, dtype=object),
            "mean": traversal.mean_sf,
            "lower": traversal.lower_sf,
            "upper": traversal.upper_sf,
        }
        if "modality" in var:
            stored["modality"] = var["modality"].to_numpy(dtype=object)
        with writable(adata):
            adata.uns["latent_traverse"] = {**adata.uns.get("latent_traverse", {}), f"axis_{axis}": stored}
        # Copies: what is done to the one must not change the other.
        return AnnData(
            traversal.mean_sf.copy(),
            obs=pd.DataFrame({"position": traversal.position_s.copy()}, pd.RangeIndex(n_steps).map("step_{}".format)),
            var=var.assign(effect_size=traversal.effect_size_f, peak_step=traversal.mean_sf.argmax(0)),
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
            "library_size_quantiles": {name: q.tolist() for name, q in self.library_size_quantiles_.items()},
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
            checks.check_parameters(model.get_params(deep=False))
            model.parameters_ = parameters_of(model)  # with those that the version of the file did not know
            # Before format version 2 there was one modality, and the schema did not know its likelihood.
            model.schema_ = Schema.from_dict(about["schema"], about["parameters"]["likelihood"])
            model.module_ = model._build(model.schema_)
            model.module_.load_state_dict(tensors)
            model.history_ = {
                k: [math.nan if v is None else v for v in values] for k, values in about["history"].items()
            }
            quantiles = about["library_size_quantiles"]
            if isinstance(quantiles, list):
                quantiles = dict.fromkeys(model.schema_.modalities, quantiles)
            model.library_size_quantiles_ = {name: np.array(quantiles[name]) for name in model.schema_.modalities}
        model.module_.eval()
        return model

    # --- Inside ---------------------------------------------------------------------------------------------------

    @property
    def feature_names_(self) -> tuple[str, ...]:
        """Names of all features that the model decodes, in its order; those of its modalities one after the other."""
        return tuple(self._features().index)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "module_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("this VAE is not fitted yet: call fit(adata) first, or VAE.load(path)")

    def _build(self, schema: Schema) -> Module:
        return Module(
            n_features={modality: len(names) for modality, names in schema.feature_names.items()},
            likelihood=schema.likelihood,
            n_categories=[len(names) for names in schema.categories.values()],
            n_continuous=len(schema.continuous),
            n_latent=self.n_latent,
            n_hidden=self.n_hidden,
            n_layers=self.n_layers,
            dropout_rate=self.dropout_rate,
            fusion=self.fusion,
            modality_weights=self.modality_weights,
            decoder=self.decoder,
        )

    def _read(self, adata: AnnData, from_: Sequence[str] | None = None) -> tuple[AnnData, Cells]:
        """Read cells of the fitted model: as one AnnData, and as tensors; of some modalities only where named."""
        layer, modality_key = (self.parameters_[name] for name in ("layer", "modality_key"))
        table = joined(adata, layer=layer, modality_key=modality_key, schema=self.schema_)
        cells = Cells.from_anndata(table, self.schema_)
        return table, cells if from_ is None else cells.only(*from_)

    def _posterior(self, adata: AnnData, modality: str | None) -> Posterior:
        self._check_fitted()
        table, cells = self._read(adata, None if modality is None else [self._modality(modality)])
        checks.warn_of_empty(table, cells, "they get the prior as their posterior", modality, stacklevel=4)
        return inference.infer(self.module_, cells)

    def _modality(self, modality: str | None) -> str:
        """Check the name of a modality; the first is meant where none is named."""
        known = self.schema_.modalities
        if modality is None:
            return known[0]
        if modality not in known:
            raise KeyError(f"the model has no modality {modality!r}: choose of {', '.join(map(repr, known))}")
        return modality

    def _library_size(self, modality: str, library_size: float | None) -> float:
        """Choose the library size to decode with where none is given."""
        if library_size is not None:
            return checks.check_library_size(library_size)
        if self.schema_.likelihood[modality] == BERNOULLI:
            return float(np.median(self.library_size_quantiles_[modality]))
        return PER_TEN_THOUSAND

    def _features(self) -> pd.DataFrame:
        """All features, one a row; where there are several modalities, the column ``modality`` names that of each."""
        by_modality = self.schema_.feature_names
        if len(by_modality) == 1:
            (names,) = by_modality.values()
            return pd.DataFrame(index=list(names))
        modality_f = [modality for modality, names in by_modality.items() for _ in names]
        index = pd.Index([name for names in by_modality.values() for name in names], dtype=object)
        if index.has_duplicates:  # of modalities in obsm
            index = pd.Index([f"{modality}:{name}" for modality, name in zip(modality_f, index, strict=True)])
        return pd.DataFrame({"modality": modality_f}, index=index)

    def _prepare(
        self,
        adata: AnnData,
        modality: str | None,
        from_: str | Sequence[str] | None,
        features: Sequence[str] | str | None,
        batch: Any,
        batch_argument: str,
        library_size: float | None,
    ) -> ToDecode:
        """Infer the latent states of cells, and look up what is to be decoded from them."""
        modality = self._modality(modality)
        names = pd.Index(self.schema_.feature_names[modality])
        wanted = names if features is None else pd.Index([features] if isinstance(features, str) else features)
        unknown = wanted[~wanted.isin(names)]
        kind = noun_of(modality)
        if len(unknown):
            raise KeyError(f"the model has no {kind} {unknown[0]!r} ({len(unknown)} of those asked for are unknown)")
        if wanted.has_duplicates:
            raise ValueError(f"{kind} {wanted[wanted.duplicated()][0]!r} is asked for more than once")
        if not isinstance(batch, Mapping | None):
            if self.schema_.batch_key is None:
                raise ValueError(
                    f"{batch_argument} names a batch, and the model was fitted without batch_key: give a dict from "
                    "covariate to value"
                )
            batch = {self.schema_.batch_key: batch}
        sources = None
        if from_ is not None:
            sources = [self._modality(name) for name in ([from_] if isinstance(from_, str) else from_)]
            if not sources:
                raise ValueError("from_ is empty: name a modality, or leave it at None for all that a cell has")
        table, cells = self._read(adata, sources)
        if sources is not None:
            checks.check_any_count(cells, sources)
        of = None if sources is None else " or ".join(sources)
        checks.warn_of_empty(table, cells, "for them the prior mean is decoded", of, stacklevel=4)
        return ToDecode(
            modality,
            inference.infer(self.module_, cells).mean,
            Covariates(*self.schema_.covariates(table, batch)),
            self._library_size(modality, library_size),
            None if features is None else names.get_indexer(wanted),
            wanted,
            table.obs,
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


@dataclass(frozen=True)
class ToDecode:
    """Cells and features of one modality whose expected values are asked for."""

    modality: str
    z_cz: np.ndarray
    covariates: Covariates
    library_size: float
    columns: np.ndarray | None
    names: pd.Index
    obs: pd.DataFrame

    def blocks(self, module: Module) -> Iterator[np.ndarray]:
        """Decode, block by block of cells."""
        return inference.expected(module, self.modality, self.z_cz, self.covariates, self.library_size, self.columns)

    def table(self, module: Module) -> pd.DataFrame:
        """Decode to one table."""
        values_cf = np.concatenate(list(self.blocks(module)))
        return pd.DataFrame(values_cf, index=self.obs.index, columns=self.names)


def parameters_of(model: VAE) -> dict[str, Any]:
    """Return the constructor's arguments in JSON types."""
    return {name: plain(value) for name, value in model.get_params(deep=False).items()}


def plain(value: Any) -> Any:
    """Turn numpy's numbers, and sequences and dicts of them, into those of JSON."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def writable(adata: AnnData) -> Iterator[None]:
    """Let a view become an AnnData of its own without a warning: that is what writing to it asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        yield
