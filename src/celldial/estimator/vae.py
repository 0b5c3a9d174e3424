"""`VAE`, the estimator: the only place that writes to an AnnData."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, ImplicitModificationWarning
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from celldial.data import checks, labels
from celldial.data.cells import Cells, in_blocks, to_csr
from celldial.data.covariates import covariate_table
from celldial.data.files import Atlas, is_stored
from celldial.data.in_memory import Resident, Source
from celldial.data.labels import CLUSTER, CLUSTER_PROBABILITY
from celldial.data.modalities import obsm_key
from celldial.data.mudata import joined
from celldial.data.on_disk import Stream, told_once
from celldial.data.schema import BERNOULLI, Schema
from celldial.data.splits import choose_cells
from celldial.estimator import validation
from celldial.estimator.prepare import NO_PART, look
from celldial.inference import laplace, posterior
from celldial.inference.posterior import Covariates, Inferred, Posterior
from celldial.io import h5ad, model_file, results
from celldial.io.checkpoint import Checkpoint
from celldial.model import latents
from celldial.model.angle_posterior import placed
from celldial.model.config import ModuleConfig
from celldial.model.elbo import BaselineName, read_gradient
from celldial.model.fusion import FusionName
from celldial.model.laplace import Loadings
from celldial.model.latents import LatentName
from celldial.model.module import Module
from celldial.model.networks import DecoderName
from celldial.model.priors import PosteriorName, PriorName
from celldial.periodic.markers import read_rhythm
from celldial.tl import axis_targets, feature_tables, find_axis, latent_traverse, phase, rank_axes, traversal_axis
from celldial.tl.find_axis import Axis
from celldial.training import clusters, loop, memory, periodic
from celldial.training.hardware import Hardware
from celldial.utils.messages import find_column, noun_of
from celldial.utils.prefetch import ahead
from celldial.utils.random import seeded
from celldial.utils.settings import Precision, chosen
from celldial.utils.validation import check_library_size, check_target, check_whole

__all__ = ["VAE"]

PER_TEN_THOUSAND = 1e4
# By how much slower coordinates are learned by the score function.
SCORED_SLOWER = 4
# Larger tables are only made where they are asked for.
MAX_ENTRIES = 25_000_000
# Cells from which biases, scales and dispersions start.
MAX_CELLS_TO_START = 100_000
# Cells among which the information about the loadings is taken: a thousand of a modality that one in twenty has.
MAX_CELLS_TO_MEASURE = 20_000


class VAE(BaseEstimator):
    r"""Conditional variational autoencoder for single-cell counts, of one modality or of several.

    Each cell has a latent state :math:`z \sim N(0, I)` [1]_; for each modality a neural network decodes it, together
    with the covariates, to the share of each feature in what is counted in the cell; the counts scatter around library
    size times share [2]_. Fitting writes the mean of every cell's posterior to ``adata.obsm["X_celldial"]``, ready for
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
        taken as 1, and each cell's depth is accounted for: see `celldial.model.likelihoods.Bernoulli`). One for all
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
        ``"mean"``; see `celldial.model.fusion.Fusion`.
    decoder
        How the shares depend on the latent coordinates: ``"network"``, or ``"additive"``, where the log of each share
        is a sum over the coordinates (and the covariates), up to the normalization of the cell. An additive decoder
        has one programme of features for each coordinate, which the coordinate switches on in one direction, so that
        one axis is one programme [9]_, at the price of a slightly lower ELBO. Give it coordinates to spare, such as
        ``n_latent=32``: those that the data do not need stay at the prior. Or ``"linear"``, where the log of each share
        is a weighted sum of the coordinates, up to the normalization: `loadings` tells the weights. The size of both
        does not depend on `n_hidden` and `n_layers`, which are then those of the encoders.
    bayesian_loadings
        Whether a linear decoder learns how sure each of its weights is, so that `loadings` has credible intervals.
    latent
        Family of the latent coordinates: ``"gaussian"``; ``"laplace"`` and ``"logistic"``, with longer tails;
        ``"log_normal"``, positive ones; ``"logistic_normal"``, shares of topics, which sum to 1 (see `topics`). In each
        they are μ + σ · noise, the last two followed by an exponential and a softmax.
    prior
        What is known of the coordinates before any count is seen: ``"standard"``, mean 0 and standard deviation 1;
        ``"mixture"``, a learned mixture of `n_components`; or ``"flow"``, a learned density without a fixed form [4]_.
    n_components
        Number of components of a mixture prior.
    posterior
        What is known of them after: ``"diagonal"``, each coordinate by itself, or ``"flow"``, which can tell how they
        hang together [5]_.
    n_clusters
        Number of clusters, as a discrete state of each cell beside the coordinates, which then are scattered around the
        place of the cell's cluster. There may be more than needed: some are then not used. See `clusters`.
    labels_key
        Column of ``adata.obs`` with labels of cells, of which some are known: clusters are named by them, and cells
        whose label is not known get one. `n_clusters` is their number by default; more leave room for new ones.
    unknown_label
        What stands in that column where the label is not known; missing values do, too.
    gradient
        How gradients through what is drawn are estimated. For the coordinates: ``"reparameterized"``, or
        ``"score_function"`` [6]_, which needs no derivative of the decoder and is far noisier, so that the learning
        rate is a quarter. For clusters: ``"enumerate"`` (the default there), which sums over all; ``"gumbel_softmax"``
        [7]_, relaxed choices, whose temperature falls in training; or ``"score_function"``. A word means the clusters
        if there are any and it can; a dict ``{"z": ..., "cluster": ...}`` says both.
    baseline
        What the score function is compared with: ``"learned"``, a network that guesses each cell's ELBO [8]_,
        ``"moving_average"``, or None.
    straight_through
        Whether relaxed choices of a cluster are rounded to one cluster, with the gradient of those that are not.
    batch_key
        Column of ``adata.obs`` with the batch, whose effect is to be kept out of the latent state.
    categorical_covariate_keys, continuous_covariate_keys
        Further columns of ``adata.obs`` that the decoder is told, and that decoding can set to another value.
    layer
        Layer that holds raw counts; ``None`` for ``adata.X``.
    periodic
        A rhythm that cells go through, as a latent coordinate on a circle beside the others: ``"cell_cycle"``, told by
        the genes of [3]_ (human, or mouse, in any case of letters); a dict of another one,
        ``{"name": "circadian", "phases": {"day": [...], "night": [...]}}``, with markers of phases that share the
        circle evenly (of two phases alone it is open in which direction the angle grows); or True to look for a circle
        without markers, which is then called ``"cycle"``.
    gene_symbols
        Column of ``adata.var`` with gene symbols to find markers by, where ``adata.var_names`` are identifiers.
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
        Quantities after each epoch, in nats per cell; see `celldial.training.loop.fit`.
    library_size_quantiles_ : dict of str to numpy.ndarray
        Modality to 101 evenly spaced quantiles of the library sizes of the cells trained on.
    periodic_ : dict of str to object, or None
        Of a model with a periodic coordinate its ``name``; where it has phases these (``phases``), the angles in
        radians where they start (``phase_start``) and the ``markers`` of each that were found; and ``gene_symbols`` if
        given.
    clusters_ : dict of str to object, or None
        Of a model with clusters their ``names``; with labels also ``labels_key``, ``unknown_label`` and ``n_labels``.

    References
    ----------
    .. [1] Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
    .. [2] Lopez et al. (2018), Deep generative modeling for single-cell transcriptomics,
       doi:10.1038/s41592-018-0229-2.
    .. [3] Tirosh et al. (2016), Dissecting the multicellular ecosystem of metastatic melanoma by single-cell RNA-seq,
       doi:10.1126/science.aad0501.
    .. [4] Papamakarios et al. (2017), Masked Autoregressive Flow for Density Estimation, arXiv:1705.07057.
    .. [5] Kingma et al. (2016), Improving Variational Inference with Inverse Autoregressive Flow, arXiv:1606.04934.
    .. [6] Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning,
       doi:10.1007/BF00992696.
    .. [7] Jang et al. (2017), Categorical Reparameterization with Gumbel-Softmax, arXiv:1611.01144.
    .. [8] Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks, arXiv:1402.0030.
    .. [9] Moinfar and Theis (2024), Unsupervised deep disentangled representation of single-cell omics,
       doi:10.1101/2024.11.06.622266.

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
    periodic_: dict[str, Any] | None
    clusters_: dict[str, Any] | None

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
        bayesian_loadings: bool = False,
        latent: LatentName = "gaussian",
        prior: PriorName = "standard",
        n_components: int = 10,
        posterior: PosteriorName = "diagonal",
        n_clusters: int | None = None,
        labels_key: str | None = None,
        unknown_label: str = "unknown",
        gradient: str | Mapping[str, str] = "reparameterized",
        baseline: BaselineName | None = "learned",
        straight_through: bool = False,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        layer: str | None = None,
        periodic: str | bool | Mapping[str, Any] | None = None,
        gene_symbols: str | None = None,
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
        self.bayesian_loadings = bayesian_loadings
        self.latent = latent
        self.prior = prior
        self.n_components = n_components
        self.posterior = posterior
        self.n_clusters = n_clusters
        self.labels_key = labels_key
        self.unknown_label = unknown_label
        self.gradient = gradient
        self.baseline = baseline
        self.straight_through = straight_through
        self.batch_key = batch_key
        self.categorical_covariate_keys = categorical_covariate_keys
        self.continuous_covariate_keys = continuous_covariate_keys
        self.layer = layer
        self.periodic = periodic
        self.gene_symbols = gene_symbols
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
        include_periodic: bool = False,
        progress: bool = True,
        device: str | None = None,
        precision: Precision | None = None,
        compile: bool = False,
        devices: int | None = None,
        num_nodes: int | None = None,
        strategy: str = "auto",
        checkpoint: str | Path | None = None,
        checkpoint_minutes: float | None = None,
        loggers: Sequence[Any] = (),
    ) -> VAE:
        """Fit the model, and write the embedding to the AnnData.

        Parameters
        ----------
        adata
            Cells with raw counts; cells may lack modalities. Cells without any count take no part and get the prior.
            Or cells in files, which are read piece by piece: a backed AnnData, the path of an ``.h5ad`` file or a
            ``.zarr`` store, or a list of paths. Of several files the features that all have are taken. Validation cells
            are then chosen in short runs of neighboring cells.
        max_epochs
            Passes over the cells; ``"auto"`` chooses by their number.
        batch_size
            Cells in a minibatch, of all devices together; ``"auto"`` is 128, less for few cells, and up to 1,024 for
            very many on a GPU.
        validation_size
            Share of the cells, chosen at random, that is kept for validation: for early stopping and `history_`.
        validation_cells
            The cells to validate on instead: names, or a boolean mask.
        early_stopping
            Stop when the validation ELBO has not become better for a quarter of the epochs (10 at least). Whether it
            stops or not, the weights of the epoch with the best validation ELBO are kept.
        key_added
            Where in ``adata.obsm`` the embedding goes.
        include_periodic
            Whether the embedding has two more columns, the place on the circle, so that cells of different phases lie
            apart. By default it is free of the rhythm.
        progress
            Whether to show a progress bar: epoch, ELBO and time left.
        device, precision
            Where and in which number format to train, in place of what `celldial.settings` say.
        compile
            Whether to compile the networks by ``torch.compile``, which takes a minute and needs a C++ compiler.
        devices, num_nodes, strategy
            On how many devices of how many machines to train, and how processes come about, as Lightning Fabric names
            it. Each device has a process of its own and a share of every minibatch. By default one device, or where
            ``torchrun`` runs the script all processes that it started. Without it, the processes of several devices are
            started here, for which a script needs ``if __name__ == "__main__":``.
        checkpoint
            A folder for what is needed to go on. The same call with the same cells goes on where an earlier one was cut
            short, whatever ended it, and ends with the same weights (on a CPU bit by bit). One that has ended is not
            repeated.
        checkpoint_minutes
            How often it is written; by default after each epoch.
        loggers
            Loggers of Lightning Fabric (TensorBoard, CSV, W&B), which get `history_` epoch by epoch.

        Returns
        -------
        VAE
            The model itself. Written: ``adata.obsm[key_added]``, what `transform` returns, shape ``(cells, n_latent)``;
            ``adata.uns["celldial"]``: parameters, schema and history; and with a periodic coordinate the columns of
            ``adata.obs`` that `phase` returns; with clusters, what `clusters` writes. Files stay as they are: where
            paths are given nothing is written, and a backed AnnData is only written to in memory.

        Raises
        ------
        ValueError, TypeError, KeyError
            Something about the arguments, counts or covariates; the message says what, where, and what to do. The
            AnnData is then as it was.
        MemoryError
            Training would need more memory than there is; the message has the figures.
        FloatingPointError
            The ELBO became infinite or NaN.
        OSError
            A file could not be read, or a checkpoint could not be written.

        Notes
        -----
        Ctrl-C ends training early: the model has the weights of the best epoch so far, and all is written. With a
        checkpoint, the same call goes on.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE(seed=0).fit(adata, max_epochs=2, progress=False)
        >>> adata.obsm["X_celldial"].shape
        (700, 10)
        >>> len(model.history_["elbo_validation"])
        2
        """
        validation.check_parameters(self.get_params(deep=False))
        validation.check_options(max_epochs, batch_size, key_added)
        validation.check_hardware(device, precision, devices, num_nodes, checkpoint_minutes)
        rhythm = read_rhythm(self.periodic)
        found = look(adata, self.get_params(deep=False), rhythm, validation_size, validation_cells)
        schema, source = found.schema, found.source
        hardware = Hardware(device, precision, compile, devices, num_nodes, strategy, loggers)
        kind = hardware.torch_device.type
        plan = loop.TrainingPlan(
            max_epochs=loop.choose_max_epochs(source.n_train) if max_epochs == "auto" else max_epochs,
            batch_size=loop.choose_batch_size(source.n_train, kind) if batch_size == "auto" else batch_size,
            learning_rate=self._learning_rate(),
            early_stopping=early_stopping,
            progress=progress,
        )
        run = loop.RunContext(
            hardware, self._checkpoint(checkpoint, checkpoint_minutes, schema, source, plan, hardware)
        )
        with chosen(device, precision), seeded(self.seed):
            sample = source.sample(MAX_CELLS_TO_START)
            held = source.cells if isinstance(source, Resident) else sample
            memory.check_memory(held, schema.likelihood, self.n_hidden, plan.batch_size, hardware.torch_device)
            module = self._build(schema, found.clusters)
            module.initialise(sample, source.n_train)
            del sample, held
            if module.clusters is not None:
                history = clusters.fit(module, source, plan, self.seed, run)
            elif rhythm is None:
                history = loop.fit(module, source, plan, self.seed, run)
            else:
                assert isinstance(source, Resident)  # others have no rhythm
                split = (source.train_c, source.validation_c)
                cells, history = periodic.fit(
                    module, source.cells, *split, plan, self.seed, run, rhythm, found.markers, found.modality
                )
                source = replace(source, cells=cells)
            inferred = embedded(module, source, adata)
            sample = source.sample(MAX_CELLS_TO_MEASURE)
            n_each = source.n_train / len(sample)
            laplace.measure_loadings(module, sample, torch.arange(len(sample)), n_each)
        self.parameters_, self.schema_, self.module_, self.history_ = parameters_of(self), schema, module, history
        self.periodic_ = (
            None
            if rhythm is None
            else periodic.describe(module, schema, rhythm, found.markers, found.modality, self.gene_symbols)
        )
        self.clusters_ = found.clusters
        totals = {
            modality: library_size_c[source.train_c].numpy()
            for modality, library_size_c in found.cells.library_size.items()
        }
        self.library_size_quantiles_ = {
            modality: np.quantile(total_c[total_c > 0], np.linspace(0, 1, 101)) for modality, total_c in totals.items()
        }
        if inferred is not None:
            self._write(adata, inferred, key_added, include_periodic)
        return self

    def fit_transform(self, adata: AnnData, **options: Any) -> np.ndarray:
        """Fit the model, and return the embedding.

        Parameters
        ----------
        adata
            As in `fit`.
        **options
            Those of `fit`.

        Returns
        -------
        numpy.ndarray
            What `transform` returns, float32, shape ``(cells, n_latent)``. Written: the same as by `fit`.

        Raises
        ------
        ValueError, TypeError, KeyError, MemoryError, FloatingPointError, OSError
            As `fit`.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> celldial.VAE(n_latent=5).fit_transform(adata, max_epochs=1, progress=False).shape
        (700, 5)
        """
        self.fit(adata, **options)
        if is_path(adata):
            return self.transform(adata, include_periodic=options.get("include_periodic", False))
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
        include_periodic: bool = False,
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
        batch_size, validation_size, validation_cells, early_stopping, key_added, include_periodic, progress
            As in `fit`.

        Returns
        -------
        VAE
            The model itself. Written: the same as by `fit`.

        Raises
        ------
        ValueError, TypeError, KeyError, FloatingPointError
            As `fit`; also where features or categories are not those of the model.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> model = model.partial_fit(adata, max_epochs=2, progress=False)
        >>> len(model.history_["elbo_validation"])
        3
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
                include_periodic=include_periodic,
                progress=progress,
            )
        validation.check_parameters(self.get_params(deep=False))
        check_whole("max_epochs", max_epochs)
        validation.check_options(max_epochs, batch_size, key_added)
        table, cells = self._read(adata)
        cells = replace(cells, label_c=labels.codes(table.obs, self.clusters_))
        checks.check_any_count(cells)
        checks.warn_of_empty(table.obs_names.__getitem__, cells, NO_PART)
        train_c, validation_c = choose_cells(table, cells, validation_size, validation_cells, self.seed)
        plan = loop.TrainingPlan(
            max_epochs=max_epochs,
            batch_size=loop.choose_batch_size(len(train_c)) if batch_size == "auto" else batch_size,
            learning_rate=self._learning_rate() / 4,
            kl_warmup=False,
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
            seed = self.seed + n_epochs_before
            if module.circle is None:
                history = loop.fit(module, Resident(cells, train_c, validation_c), plan, seed)
            else:
                cells, history = periodic.continue_fit(module, cells, train_c, validation_c, plan, seed)
            inferred = posterior.infer(module, cells)
            laplace.measure_loadings(module, cells, train_c)
            module.requires_grad_(True)
        self.module_ = module
        # Without validation cells, now or then, the quantities of validation are missing there.
        missing_before, missing_now = ([math.nan] * len(part["seconds"]) for part in (self.history_, history))
        self.history_ = {
            name: self.history_.get(name, missing_before) + history.get(name, missing_now)
            for name in self.history_ | history
        }
        self.history_["kept"][:n_epochs_before] = [0.0] * n_epochs_before
        self._write(adata, inferred, key_added, include_periodic)
        return self

    # --- From cells to latent states ------------------------------------------------------------------------------

    def transform(
        self,
        adata: AnnData,
        *,
        modality: str | None = None,
        key_added: str | None = None,
        include_periodic: bool = False,
    ) -> np.ndarray:
        """Embed cells: compute the mean of each cell's posterior.

        With positive coordinates, or shares of topics, it is the exponential or softmax of that mean.

        Parameters
        ----------
        adata
            Any cells with the features of the model (in any order, at least half of them) and its covariates, with
            all of the model's modalities or some; or files of cells, as in `fit`. Cells without any count get the prior
            mean, 0, and a warning says how many they are.
        modality
            Hear this modality alone, as if nothing else had been measured; by default all that a cell has.
        key_added
            Where in ``adata.obsm`` to write the embedding, such as ``"X_celldial_rna"``. By default it is not written.
        include_periodic
            Whether to add two columns, the place on the circle: activity times cosine and sine of the angle.

        Returns
        -------
        numpy.ndarray
            The embedding, float32, shape ``(cells, n_latent)``, or with `include_periodic` two columns more. Where
            `key_added` is given, the same is written to ``adata.obsm[key_added]``.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError, TypeError, KeyError
            Counts, features, covariates or modalities of the cells do not fit the model; the message says what, and
            what to do.
        FloatingPointError
            A latent state is not finite.
        OSError
            A file could not be read.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata[:600].copy(), max_epochs=1, progress=False)
        >>> model.transform(adata[600:]).shape
        (100, 10)
        """
        check_target(adata, key_added)
        inferred, _ = self._inferred(adata, modality)
        embedding_cz = inferred.embedding_with_place if include_periodic else inferred.embedding
        if key_added is not None:
            with writable(adata):
                adata.obsm[key_added] = embedding_cz.copy()
        return embedding_cz

    def latent_posterior(self, adata: AnnData, *, modality: str | None = None) -> Posterior:
        """Say where each cell is in latent space, and how sure that is.

        Cells without any count get the prior, mean 0 and standard deviation 1, and a warning says how many they are.

        Parameters
        ----------
        adata, modality
            As in `transform`.

        Returns
        -------
        Posterior
            Mean and standard deviation of each cell's latent coordinates, float32, each of shape ``(cells, n_latent)``.
            Of positive coordinates and topics they are those before the exponential or softmax.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError, TypeError, KeyError
            Counts, features, covariates or modalities of the cells do not fit the model; the message says what, and
            what to do.
        FloatingPointError
            A latent state is not finite.
        OSError
            A file could not be read.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> mean, standard_deviation = model.latent_posterior(adata)
        >>> mean.shape, standard_deviation.shape
        ((700, 10), (700, 10))
        """
        inferred, _ = self._inferred(adata, modality)
        return Posterior(inferred.mean, inferred.standard_deviation)

    def phase(self, adata: AnnData, *, modality: str | None = None) -> pd.DataFrame:
        r"""Say where on the circle cells are, and write it to the AnnData.

        Parameters
        ----------
        adata, modality
            As in `transform`.

        Returns
        -------
        pandas.DataFrame
            A table of the cells with columns that begin with the name of the periodic coordinate, such as
            ``"cell_cycle_angle"``; the same is written to ``adata.obs``.

            - ``_angle`` in [0, 2π), given that the cell is active. For the cell cycle 0 is the start of G1, and it
              grows from G1 over S and G2 to M.
            - ``_concentration``: how sure the angle is, κ of a power spherical distribution. Its standard deviation is
              about :math:`\sqrt{2 / κ}` rad where that is small; 0 is no idea.
            - ``_active_probability``, and ``_active`` where that is 1/2 or more: whether the cell is on the circle at
              all.
            - ``_phase``, where the model knows phases: which one the angle is in; missing for cells that are not
              active, or whose angle could be almost anything (concentration below 1).

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError
            The model has no periodic coordinate, or a column of this name is there that no model wrote.
        ValueError, TypeError, KeyError, FloatingPointError, OSError
            As `transform`.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.simulate_multiome(600, 100, 200, depth=6)
        >>> model = celldial.VAE(periodic="cell_cycle").fit(adata, max_epochs=8, progress=False)
        >>> model.phase(adata)["cell_cycle_phase"].cat.categories.tolist()
        ['G1', 'S', 'G2M']
        """
        self._check_fitted()
        if self.periodic_ is None:
            raise ValueError("this model has no periodic coordinate: fit one with VAE(periodic='cell_cycle')")
        if not is_path(adata):
            results.check_columns_free(adata, self.periodic_["name"])
        inferred, obs = self._inferred(adata, modality)
        table = phase.table(inferred, self.periodic_, obs.index)
        if not is_path(adata):
            self._write_phase(adata, table)
        return table

    def clusters(self, adata: AnnData, *, modality: str | None = None) -> pd.DataFrame:
        """Say which cluster cells are in, and write it to the AnnData.

        This is judged by the counts alone, also where a label is known.

        Parameters
        ----------
        adata, modality
            As in `transform`.

        Returns
        -------
        pandas.DataFrame
            The probability of each cluster, one row a cell. Written: the same to
            ``adata.obsm["celldial_cluster_probability"]``, and the most probable one to
            ``adata.obs["celldial_cluster"]``. Clusters are called by their labels; those without one ``"0"``, ``"1"``
            and so on. Columns that are written have ``"-"`` for each ``"/"`` of a label, as files of cells have no
            columns with a slash.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError
            The model has no clusters.
        ValueError, TypeError, KeyError, FloatingPointError, OSError
            As `transform`.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE(n_clusters=8).fit(adata, max_epochs=2, progress=False)
        >>> model.clusters(adata).shape
        (700, 8)
        """
        self._check_fitted()
        if self.clusters_ is None:
            raise ValueError("this model has no clusters: fit one with VAE(n_clusters=...) or VAE(labels_key=...)")
        inferred, obs = self._inferred(adata, modality)
        table = pd.DataFrame(inferred.cluster, obs.index, columns=self.clusters_["names"])
        if not is_path(adata):
            self._write_clusters(adata, table)
        return table

    def score(self, adata: AnnData, y: None = None, *, n_samples: int = 1) -> float:
        """Judge held-out cells by the mean ELBO, in nats per cell; higher is better.

        Latent samples are drawn from `seed`; the KL term has full weight. Cells without any count are left out.

        Parameters
        ----------
        adata
            Cells that `fit` did not see; or files of them.
        y
            Ignored; scikit-learn's convention.
        n_samples
            Latent samples of each cell. With more than one this is the importance-weighted bound [1]_, which comes
            nearer to the log probability of the counts the more there are, and compares models with different
            posteriors.

        Returns
        -------
        float
            Nats per cell, mean over the cells that have counts.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError, TypeError, KeyError
            Counts, features, covariates or modalities of the cells do not fit the model; the message says what, and
            what to do.
        ValueError
            No cell has a count, or `n_samples` is less than 1.
        OSError
            A file could not be read.

        References
        ----------
        .. [1] Burda et al. (2016), Importance Weighted Autoencoders, arXiv:1509.00519.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata[:600].copy(), max_epochs=2, progress=False)
        >>> held_out = adata[600:]
        >>> bool(model.score(held_out) < model.score(held_out, n_samples=10) < 0)
        True
        """
        self._check_fitted()
        check_whole("n_samples", n_samples)
        with seeded(self.seed):
            blocks = self._filled(adata)
            if n_samples > 1:
                return posterior.bound(self.module_, blocks, n_samples)
            return loop.evaluate(self.module_, blocks)["elbo_validation"]

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
            Latent states, shape ``(cells, n_latent)``; with a periodic coordinate two columns more, the place on the
            circle, as `transform` gives them with `include_periodic`.
        covariates
            Covariate to one value for all cells, or to one a cell; or a table such as ``adata.obs``.
        modality
            What to decode to; by default the model's first, ``"rna"`` where it has that.
        library_size
            The total count of a cell in this modality. By default 10,000, or under a Bernoulli likelihood the median of
            the cells of `fit`.

        Returns
        -------
        numpy.ndarray
            Expected counts, or probabilities under a Bernoulli likelihood, float32, shape ``(cells, features)``.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError
            Latent states have another shape, are not finite or out of the range of their family; a covariate has a
            value that the model does not know; or the library size is not above 0.
        TypeError
            Covariates are of the wrong kind.
        KeyError
            The model has no such modality or covariate, or one is not given.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> expected_cf = model.decode(adata.obsm["X_celldial"][:5])
        >>> expected_cf.shape, expected_cf.sum(1).round()
        ((5, 765), array([10000., 10000., 10000., 10000., 10000.], dtype=float32))
        """
        self._check_fitted()
        z_cz = latents.check_latent_states(z, self.module_.n_states)
        latents.check_range(z_cz[:, : self.module_.latent.n_latent], self.parameters_["latent"])
        z_cz = self.module_.hidden(torch.from_numpy(z_cz)).numpy()
        encoded = Covariates(*self.schema_.covariates({} if covariates is None else covariates, n_cells=len(z_cz)))
        name = self._modality(modality)
        return np.concatenate(
            list(posterior.expected(self.module_, name, z_cz, encoded, self._library_size(name, library_size)))
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
        pandas.DataFrame
            Expression, cells × features, in counts per `library_size`.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        KeyError
            A feature, modality or covariate is not of the model.
        ValueError
            A feature is asked for twice; `transform_batch` names a batch and the model has no `batch_key`; the library
            size is not above 0; or `key_added` is given and there is no AnnData to write to.
        ValueError, TypeError, FloatingPointError, OSError
            As `transform`.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> model.denoise(adata, genes=["CD3D", "CD79A"]).shape
        (700, 2)
        """
        self._check_fitted()
        check_target(adata, key_added)
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
            Cells, which may lack `modality` altogether; or files of cells, as in `fit`, to which nothing is written.
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
        pandas.DataFrame
            Expected counts, or probabilities under a Bernoulli likelihood, cells × features, float32. Written: the same
            to ``adata.obsm[key_added]``, as a table where `features` are named, else as an array in the order of the
            model's features of this modality.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError
            The table would be large and `dense` is False; or no cell has any of `from_`.
        KeyError
            A modality, feature or covariate is not of the model.
        ValueError, TypeError, FloatingPointError, OSError
            As `denoise`.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.simulate_multiome(200, 100, 300)
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> model.impute(adata, "atac", from_="rna").shape
        (200, 300)
        """
        self._check_fitted()
        check_target(adata, key_added)
        to_decode = self._prepare(adata, modality, from_, features, batch, "batch", library_size)
        n_entries = len(to_decode.z_cz) * len(to_decode.names)
        if n_entries > MAX_ENTRIES and not dense:
            raise ValueError(
                f"the table of {len(to_decode.z_cz)} cells × {len(to_decode.names)} features takes "
                f"{4 * n_entries / 1e9:.1f} GB: name the features=[...] you need, use impute_to_file, or "
                "pass dense=True"
            )
        table = to_decode.table(self.module_)
        if is_path(adata):
            return table
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
        adata, modality
            As in `impute`. Nothing is written to `adata`.
        path
            The file to write, whole or not at all: an AnnData of cells × features with the table in ``X``, float32,
            and the cells' ``obs`` (of files, the columns that the model knows). ``anndata.read_h5ad(path, backed="r")``
            reads parts of it.
        from_, features, batch, library_size
            As in `impute`.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError, TypeError, KeyError, FloatingPointError
            As `impute`, but for the size of the table.
        OSError
            A file could not be read or written.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> import anndata, celldial
        >>> adata = celldial.datasets.simulate_multiome(200, 100, 300)
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> with TemporaryDirectory() as folder:
        ...     model.impute_to_file(adata, "atac", f"{folder}/imputed.h5ad", from_="rna")
        ...     anndata.read_h5ad(f"{folder}/imputed.h5ad").shape
        (200, 300)
        """
        self._check_fitted()
        to_decode = self._prepare(adata, modality, from_, features, batch, "batch", library_size)
        h5ad.write_blocks(Path(path), to_decode.blocks(self.module_), to_decode.obs, to_decode.names)

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
        anndata.AnnData
            Counts in ``X`` (CSR, float32), the latent states in ``obsm["z"]``, the covariates in ``obs``; with several
            modalities ``var["modality"]`` says which a feature is of.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError
            `n` is less than 1, or a covariate has a value that the model does not know.
        TypeError
            Covariates are of the wrong kind.
        KeyError
            The model has no such covariate, or one is not given.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE(categorical_covariate_keys=["phase"]).fit(adata, max_epochs=1, progress=False)
        >>> model.sample(100, {"phase": "S"}).shape
        (100, 765)
        """
        self._check_fitted()
        check_whole("n", n)
        covariates = {} if covariates is None else covariates
        encoded = Covariates(*self.schema_.covariates(covariates, n_cells=n))
        with seeded(self.seed if seed is None else seed):
            z_cz, counts = posterior.draw_cells(self.module_, encoded, self.library_size_quantiles_)
        obs = covariate_table(covariates, n)[[*self.schema_.categories, *self.schema_.continuous]]
        obs = obs.set_axis(pd.RangeIndex(n).map("sample_{}".format))
        joint = sparse.hstack([counts[modality] for modality in self.schema_.modalities], format="csr")
        var = self._features()
        if self.schema_.modalities != ("rna",):  # so that a model can be fitted to them as to the cells they are like
            var[self.parameters_["modality_key"]] = [
                modality for modality, names in self.schema_.feature_names.items() for _ in names
            ]
        return AnnData(joint, obs, var, obsm={"z": self.module_.shown(torch.from_numpy(z_cz)).numpy()})

    # --- Axes -----------------------------------------------------------------------------------------------------

    def axes(self, adata: AnnData, *, n_cells: int = 500) -> pd.DataFrame:
        """Rank the latent coordinates by how much they matter, and mark those that the model does not use.

        Parameters
        ----------
        adata
            Cells to judge by; those without any count take no part.
        n_cells
            Number of cells, drawn at random, whose output is decoded for the variance, `n_latent` + 1 times each.

        Returns
        -------
        pandas.DataFrame
            One row a coordinate, ``"axis_0"`` and so on (``"topic_0"`` where they are topics) and the periodic one by
            its name, what matters most first. Written: the same, in the order of the coordinates, to
            ``adata.uns["celldial"]["coordinates"]``.

            - ``kl``: KL divergence of the cells' posteriors from the prior, mean over all cells, in nats: how much the
              counts tell of the coordinate.
            - ``variance``: how much the decoded output hangs on it. Half the mean squared change of the natural
              logarithm of what is expected when the coordinate alone is replaced by that of a random cell, features
              weighted by their share of what is expected; see `celldial.tl.rank_axes.total_effects`. Mean over
              modalities.
            - ``share``: the variance as a share of the sum over coordinates, taken in each modality (``share_rna``,
              ...) and averaged over them.
            - ``used``: whether `kl` is 0.1 nats or more, and `share` 0.05 % or more.
            - ``rank``: 0 is the largest share.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError
            Fewer than two cells have counts.
        ValueError, TypeError, KeyError, FloatingPointError
            As `transform`.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE(n_latent=3).fit(adata, max_epochs=1, progress=False)
        >>> list(model.axes(adata).columns)
        ['kl', 'variance', 'share', 'share_rna', 'used', 'rank']
        """
        self._check_fitted()
        check_whole("n_cells", n_cells, 2)
        _, cells = self._read(adata)
        checks.check_any_count(cells)
        periodic = None if self.periodic_ is None else self.periodic_["name"]
        depth = {modality: self._library_size(modality, None) for modality in self.schema_.modalities}
        table = rank_axes.rank(self.module_, cells, depth, periodic, n_cells, self.seed)
        with writable(adata):
            adata.uns["celldial"] = {**adata.uns.get("celldial", {}), "coordinates": table.copy()}
        return table.sort_values("rank")

    def find_axis(
        self,
        adata: AnnData,
        name: str,
        *,
        obs: str | None = None,
        groups: tuple[Any, Any] | None = None,
        genes: Mapping[str, Sequence[str]] | None = None,
        modality: str | None = None,
        n_permutations: int = 999,
    ) -> Axis:
        """Find the direction in latent space along which something changes, name it, and score every cell on it.

        The direction is the way in which the mean latent state moves; the score is the linear function of the latent
        state that tells best how far a cell is, on average 0 where the axis starts and 1 where it ends; see
        `celldial.tl.find_axis.find_direction`. Give one of `obs`, `groups` and `genes`, or `obs` and `groups`.

        Parameters
        ----------
        adata
            Cells to find it in. Those without any count, or with NaN in `obs`, take no part, but get a score.
        name
            What to call it: the column of ``adata.obs`` with the score.
        obs
            Column of ``adata.obs``. Of two categories, the axis goes from the first to the second (that is, of a
            categorical their order, else the order of the alphabet; of booleans from False to True); of an ordered
            categorical from the first to the last, with the others evenly between; of numbers from their 5 % quantile
            to their 95 % quantile.
        groups
            From which value of `obs` to which, ``("ctrl", "stim")``; other cells take no part. Without `obs`, the one
            column of text or categories that has both is looked for.
        genes
            ``{"up": [...], "down": [...]}``, either or both. The axis is that of the observed expression of these
            genes, log-normalized and standardized, mean of those up less mean of those down, from its 5 % quantile to
            its 95 % quantile. Names that are not found are looked for without regard to case.
        modality
            What `genes` are features of; ``"rna"`` by default, or the model's first.
        n_permutations
            For the p-value: how many times to shuffle the target over the cells, within batches where the model has a
            `batch_key`. It cannot come out below 1 / (1 + `n_permutations`).

        Returns
        -------
        Axis
            The axis: origin, direction, filter, ``strength`` (share of the target's variance that the score explains,
            R² adjusted for the number of coordinates, within batches) and ``p_value``. Written: the scores, float32, to
            ``adata.obs[name]``, and the axis to ``adata.uns["celldial"]["axes"][name]``.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError, TypeError, KeyError
            The name is taken; a column, group or gene is not there; there is nothing to tell apart, or too few cells.
            The AnnData is then as it was.

        Notes
        -----
        The p-value is over cells: it is small where these cells differ beyond chance. Cells of one donor or culture are
        no independent repeats, so that it does not say that other donors would show the same. For that, compare the
        scores averaged by donor.

        Where the model has a `batch_key`, differences of the means between batches are taken out first, so that a
        difference between batches is no axis.

        References
        ----------
        Haufe et al. (2014), On the interpretation of weight vectors of linear models in multivariate neuroimaging,
        doi:10.1016/j.neuroimage.2013.10.067.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=5, progress=False)
        >>> axis = model.find_axis(adata, "B or T", groups=("CD4+/CD25 T Reg", "CD19+ B"))
        >>> axis.description
        'bulk_labels: CD4+/CD25 T Reg → CD19+ B'
        >>> axis.strength > 0.5, axis.p_value
        (True, 0.001)
        >>> axis = model.find_axis(adata, "cytotoxicity", genes={"up": ["NKG7", "GNLY", "PRF1"], "down": ["CD79A"]})
        """
        self._check_fitted()
        check_whole("n_permutations", n_permutations)
        record = adata.uns.get("celldial", {})
        found = dict(record.get("axes", {}))
        reserved = [] if self.periodic_ is None else [self.periodic_["name"]]
        find_axis.check_name(name, adata.obs.columns, found, self.module_.latent.n_latent, reserved)
        table, cells = self._read(adata)
        checks.check_any_count(cells)
        filled_c = (~cells.empty_c).nonzero()[:, 0]
        target = self._target(table.obs.iloc[filled_c.numpy()], cells.select(filled_c), obs, groups, genes, modality)
        warned = "they take no part, and are scored as the prior mean"
        checks.warn_of_empty(table.obs_names.__getitem__, cells, warned)
        mean_cz = posterior.infer(self.module_, cells).mean
        axis = find_axis.find_direction(
            name,
            target.description,
            mean_cz[filled_c.numpy()],
            target.value_c,
            None if self.schema_.batch_key is None else cells.category_ck[filled_c, 0].numpy(),
            n_permutations,
            np.random.default_rng(self.seed),
        )
        with writable(adata):
            adata.obs[name] = axis.score(mean_cz)
            adata.uns["celldial"] = {**record, "axes": {**found, name: axis.to_dict()}}
        return axis

    def topics(self, n_features: int | None = None, *, covariates: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Say which genes and peaks each topic is made of, for ``latent="logistic_normal"``.

        Each topic is shown pure: a cell with a share of 1 of it is decoded.

        Parameters
        ----------
        n_features
            How many features of each topic and modality to list, those of the best rank; all by default.
        covariates
            Covariate to one value, ``{"batch": "b2"}``. Shares are averaged over the categories of those that are not
            given, and numbers are taken at their mean over the cells of `fit`.

        Returns
        -------
        pandas.DataFrame
            One row a topic and feature, ordered by topic, modality and rank.

            - ``topic``: ``"topic_0"`` and so on, in the order of the embedding's columns; and the ``feature``, with its
              ``modality``.
            - ``share``: the share of the feature in what is counted of its modality in a pure cell. The shares of all
              features of a topic and modality sum to 1.
            - ``log2_lift``: log2 of that share against the average of the topics' shares.
            - ``rank``: 0 is the feature that sets the topic apart most, by share × log2 lift. The sum of these is the
              Kullback-Leibler divergence of the topic from the average of all, in bits per count.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError
            The coordinates are not topics.
        TypeError
            `covariates` is no dict.
        KeyError
            The model has no such covariate.

        Notes
        -----
        How common the topics are is the mean of the embedding: ``adata.obsm["X_celldial"].mean(0)``. Few cells are near
        to pure. What a linear decoder says of pure ones follows from mixed ones; what a neural network says need not.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE(5, latent="logistic_normal").fit(adata, max_epochs=2, progress=False)
        >>> table = model.topics(n_features=10)
        >>> list(table.columns), len(table)
        (['topic', 'modality', 'feature', 'share', 'log2_lift', 'rank'], 50)
        """
        self._check_fitted()
        if self.parameters_["latent"] != "logistic_normal":
            raise ValueError(
                f"latent is {self.parameters_['latent']!r}, whose coordinates are not topics: fit "
                "VAE(latent='logistic_normal') for topics; latent_traverse shows what a coordinate changes"
            )
        if n_features is not None:
            check_whole("n_features", n_features)
        given = feature_tables.check_covariates(covariates)
        others = feature_tables.in_turn(
            {key: names for key, names in self.schema_.categories.items() if key not in given}
        )
        means = {key: mean for key, (mean, _) in self.schema_.continuous.items() if key not in given}
        n_cells = max([1, *map(len, others.values())])
        encoded = Covariates(*self.schema_.covariates(others | means, given, n_cells=n_cells))
        return feature_tables.topic_table(self.module_, encoded, self._names_by_modality(), n_features)

    def loadings(self, n_features: int | None = None) -> pd.DataFrame:
        """Say by how much each coordinate changes each gene and peak, for ``decoder="linear"``.

        Parameters
        ----------
        n_features
            How many features of each coordinate and modality to list, those of the best rank; all by default.

        Returns
        -------
        pandas.DataFrame
            One row a coordinate and feature, ordered by coordinate, modality and rank.

            - ``coordinate``: ``"axis_0"`` and so on (``"topic_0"`` where they are topics); and the ``feature``, with
              its ``modality``.
            - ``loading``: the change of the natural logarithm of the feature's share per unit of the coordinate, as it
              stands in the embedding, against the mean of the modality's features: those of a coordinate sum to 0. A
              constant added to all would change nothing, since shares sum to 1.
            - ``standard_deviation``, and the 90 % credible interval from ``lower`` to ``upper``.
            - ``lfsr``: local false sign rate, how probable it is that the loading has the other sign [1]_.
            - ``rank``: 0 is the feature with the loading that is surely large: by its absolute value less half the
              width of the interval.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError
            The decoder is not linear.

        Notes
        -----
        With `bayesian_loadings` the intervals are those of the posterior that was learned together with the loadings.
        Without it they are from a Laplace approximation, see `latent_traverse`, that tells ten directions of the
        coordinates and covariates apart: beyond these the intervals are those of the prior. Both take the cells'
        states as independent of the loadings, and how the coordinates are turned against each other as given.

        References
        ----------
        .. [1] Stephens (2017), False discovery rates: a new deal, doi:10.1093/biostatistics/kxw041.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE(5, decoder="linear", bayesian_loadings=True).fit(adata, max_epochs=2, progress=False)
        >>> model.loadings(n_features=3).query("coordinate == 'axis_0'")["rank"].tolist()
        [0, 1, 2]
        """
        self._check_fitted()
        if self.parameters_["decoder"] != "linear":
            raise ValueError(
                f"decoder is {self.parameters_['decoder']!r}, which has no loadings of coordinates: fit "
                "VAE(decoder='linear') for them; latent_traverse shows what a coordinate changes"
            )
        if n_features is not None:
            check_whole("n_features", n_features)
        return feature_tables.loading_table(self.module_, self._names_by_modality(), n_features)

    def _names_by_modality(self) -> dict[str, np.ndarray]:
        """Give the names of each modality's features, as tables of all features have them."""
        names_f = self._features().index.to_numpy()
        ends = np.cumsum([len(names) for names in self.schema_.feature_names.values()])[:-1]
        return dict(zip(self.schema_.modalities, np.split(names_f, ends), strict=True))

    def _target(
        self,
        obs_table: pd.DataFrame,
        cells: Cells,
        obs: str | None,
        groups: Any,
        genes: Any,
        modality: str | None,
    ) -> axis_targets.Target:
        """Make one number a cell of what an axis is to tell."""
        if (genes is None) == (obs is None and groups is None):
            raise ValueError("find_axis needs one of: obs (with groups or without), groups, or genes")
        if genes is None:
            if modality is not None:
                raise ValueError(f"modality is {modality!r}, which says what genes are features of; genes is not given")
            key = axis_targets.find_groups(obs_table, groups) if obs is None else obs
            return axis_targets.obs_target(find_column(obs_table, key, "obs column"), key, groups)
        modality = self._modality("rna" if modality is None and "rna" in self.schema_.modalities else modality)
        names = self.schema_.feature_names[modality]
        positions = axis_targets.read_genes(genes, names, f"{noun_of(modality)}s")
        counts = to_csr(cells.counts[modality])
        return axis_targets.expression_target(counts, cells.library_size[modality].numpy(), positions, names)

    def latent_traverse(
        self,
        adata: AnnData,
        axis: int | str | tuple[Any, Any] = 0,
        *,
        n_steps: int = 25,
        span: tuple[float, float] = (0.01, 0.99),
        at: Mapping[str, Any] | tuple[str, Any] | str | None = None,
        groupby: str | None = None,
        covariates: Mapping[str, Any] | None = None,
        n_cells: int = 32,
        n_samples: int | None = None,
        library_size: float | None = None,
        key_added: str | None = None,
        seed: int | None = None,
    ) -> AnnData:
        r"""Turn a dial of latent space, and see which genes and peaks change, and how sure that is.

        Some cells are moved along the axis step by step, all else about them as it is; each step is decoded, and
        averaged over the cells.

        Parameters
        ----------
        adata
            Cells to start from.
        axis
            What to turn.

            - a number, or ``"axis_3"``: a latent coordinate, from 0; or ``"topic_3"`` where they are topics;
            - the name of an axis that `find_axis` found, stored in ``adata.uns["celldial"]["axes"]``;
            - the name of the model's periodic axis, ``"cell_cycle"``: once round, the last step is the first;
            - two cells, or two groups ``("CD4 T", "CD8 T")``: from the one to the other. Cells of the two groups are
              paired so that the ways are short, and each moves straight to its partner: the first step shows the one
              group as it is, the last step the other, with the covariates of the first.
        n_steps
            Number of steps.
        span
            From which to which quantile of the cells on a coordinate or a named axis.
        at
            Which cells to move: by default any; a group, ``{"cell_type": "B"}`` or ``("cell_type", "B")``; or one cell,
            by its name. Not for a path. On a periodic axis, of all cells or of a group, those that are active.
        groupby
            The column of ``adata.obs`` that has the groups of a path, where several have both.
        covariates
            Covariate to one value for all cells, ``{"batch": "b2"}``: decode as if they were of it. By default each
            cell keeps its own.
        n_cells
            How many cells to move, chosen at random; they stand for all that are meant.
        n_samples
            How often the state of each cell is drawn from its posterior, at least 2; by default 64 draws in all. What
            a step costs grows with cells × samples.
        library_size
            As in `decode`; a number is taken for all modalities that are counted, and for no Bernoulli one.
        key_added
            Under what name to store the result in ``adata.uns["latent_traverse"]``. By default ``"axis_3"``
            (``"topic_3"`` of a topic), the name of the axis, or ``"CD4 T to CD8 T"``.
        seed
            Of the choice of cells and of the draws; the model's by default.

        Returns
        -------
        anndata.AnnData
            Steps × features, those of all modalities.

            - ``X`` and ``layers["mean"]``: the expected expression, mean over the cells.
            - ``layers["lower"]``, ``layers["upper"]``: a 90 % credible interval of that mean. See the notes.
            - ``layers["log2_fold_change"]``: the mean against that of the first step.
            - ``obs["position"]``: the coordinate (of a topic its share, mean over the cells), score, angle (also
              ``obs["angle"]``), or share of the way from 0 to 1.
            - ``var["effect_size"]``: the log2 fold change of the highest step against the lowest; ``var["change"]``
              that of the last step against the first (0 on a circle); ``var["peak_step"]`` the highest step.
            - ``var["lfsr"]``: local false sign rate, how probable it is that the highest step is not above the lowest;
              ``var["fdr"]``: mean lfsr of this feature and of all that are surer [1]_. The two steps are chosen from
              the curve itself, which they do not allow for: around a circle ask for a twofold change besides.
            - ``var["rank"]``: 0 is the feature that most surely changes much: by the lower end of the interval of its
              log2 fold change from lowest to highest step, moderated by the mean level of the modality's features, so
              that what is hardly there counts little. The top risers are ``path.var.query("change >
              0").sort_values("rank")``.
            - ``var["modality"]``.

            Written: the same as arrays to ``adata.uns["latent_traverse"][name]``, with what was asked for.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError, TypeError, KeyError
            An argument, or what it names, makes no sense; the message says what to do. Nothing is then written.

        Warns
        -----
        UserWarning
            The model is from a file of an earlier version, which did not keep how sure the loadings are: the intervals
            are those of the cells' states alone.

        Notes
        -----
        The interval is of the mean over all cells that are meant, of which `n_cells` are moved, and has three sources.
        The cells' states are uncertain: their posteriors are sampled. The cells that are moved differ. The decoder's
        loadings are uncertain: their posterior is a Laplace approximation of the last layer [2]_ [3]_, from the
        information in the counts of the cells trained on. It says how well a mean is known, not how much cells differ,
        and takes the other layers as given.

        At most 20,000 cells are read for the quantiles, block by block, and no matrix of cells × features is made.

        References
        ----------
        .. [1] Stephens (2017), False discovery rates: a new deal, doi:10.1093/biostatistics/kxw041.
        .. [2] MacKay (1992), A practical Bayesian framework for backpropagation networks,
           doi:10.1162/neco.1992.4.3.448.
        .. [3] Kristiadi et al. (2020), Being Bayesian, even just a bit, fixes overconfidence in ReLU networks,
           arXiv:2002.10118.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> model.latent_traverse(adata, "axis_3", n_steps=5).shape
        (5, 765)
        >>> path = model.latent_traverse(adata, ("CD14+ Monocyte", "Dendritic"), groupby="bulk_labels")
        >>> list(adata.uns["latent_traverse"])
        ['axis_3', 'CD14+ Monocyte to Dendritic']
        """
        self._check_fitted()
        check_whole("n_steps", n_steps, 2)
        check_whole("n_cells", n_cells)
        if n_samples is not None:
            check_whole("n_samples", n_samples, 2)
        traversal_axis.check_traversal(span, covariates, key_added)
        seed = self.seed if seed is None else seed
        check_whole("seed", seed, 0)
        depth = {
            name: self._library_size(name, None if likelihood == BERNOULLI else library_size)
            for name, likelihood in self.schema_.likelihood.items()
        }
        record = adata.uns.get("celldial", {})
        topics = self.parameters_["latent"] == "logistic_normal"
        dial = traversal_axis.find_dial(
            axis, self.module_.latent.n_latent, record.get("axes", {}), self.periodic_, topics
        )
        table = self._joined(adata)
        random = np.random.default_rng(seed)
        with seeded(seed):
            if dial.kind == "path":
                if at is not None:
                    raise ValueError(f"at is {at!r}, but axis is a path, which moves cells of its ends: leave at out")
                moved = latent_traverse.move_between(
                    self.module_, self.schema_, table, dial, groupby, n_steps, n_cells, n_samples, random
                )
            else:
                if groupby is not None:
                    raise ValueError(f"groupby is {groupby!r}, but axis is no path between groups: leave groupby out")
                moved = latent_traverse.move_along(
                    self.module_, self.schema_, table, dial, at, n_steps, span, n_cells, n_samples, random
                )
        if any(modality.loadings is None for _, modality in self.module_.by_modality()):
            warnings.warn(
                "the file of this model is of an earlier version, which did not keep how sure its loadings are: the "
                "intervals show how sure the cells' latent states are, and no more; fit or partial_fit adds the rest",
                stacklevel=2,
            )
        result, stored = latent_traverse.turned(
            self.module_, self.schema_, dial, moved, covariates, depth, self._features().index
        )
        with writable(adata):
            key = dial.name if key_added is None else key_added
            others = {name: other for name, other in adata.uns.get("latent_traverse", {}).items() if name != key}
            adata.uns["latent_traverse"] = {**others, key: stored}  # last, which plots take by default
        return result

    # --- Keeping a model ------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one file, JSON and safetensors, that loading runs no code from.

        The file appears whole or not at all; one that is there is replaced.

        Parameters
        ----------
        path
            Where to; by custom ``NAME.celldial``.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        OSError
            The file could not be written.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> with TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/blood.celldial")
        ...     again = celldial.VAE.load(f"{folder}/blood.celldial")
        >>> bool((again.transform(adata) == model.transform(adata)).all())
        True
        """
        self._check_fitted()
        about = {
            "celldial_version": importlib.metadata.version("celldial"),
            "parameters": self.parameters_,
            "schema": self.schema_.to_dict(),
            # JSON has no NaN, which stands where an epoch had no validation cells.
            "history": {k: [None if math.isnan(v) else v for v in values] for k, values in self.history_.items()},
            "library_size_quantiles": {name: q.tolist() for name, q in self.library_size_quantiles_.items()},
            "periodic": plain(self.periodic_),
            "clusters": plain(self.clusters_),
        }
        model_file.write(Path(path), about, self.module_.state_dict())

    @classmethod
    def load(cls, path: str | Path) -> VAE:
        """Read a model that `save` wrote, with this version or an earlier one.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        VAE
            The fitted model.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is no model, is damaged, or was written by a later version.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE(n_latent=5).fit(adata, max_epochs=1, progress=False)
        >>> with TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/blood.celldial")
        ...     celldial.VAE.load(f"{folder}/blood.celldial").n_latent
        5
        """
        about, tensors = model_file.read(Path(path))
        # Seeded, because weights are drawn before they are replaced: the caller's random numbers stay as they are.
        with model_file.damaged_if_this_fails(path), seeded(0):
            model = cls(**about["parameters"])
            validation.check_parameters(model.get_params(deep=False))
            model.parameters_ = parameters_of(model)  # with those that the version of the file did not know
            # Before format version 2 there was one modality, and the schema did not know its likelihood.
            model.schema_ = Schema.from_dict(about["schema"], about["parameters"]["likelihood"])
            model.clusters_ = about.get("clusters")  # since format version 4
            model.module_ = model._build(model.schema_, model.clusters_)
            for name, modality in model.module_.by_modality():
                prefix = f"modalities.{name}.loadings."
                found = {key.removeprefix(prefix): part for key, part in tensors.items() if key.startswith(prefix)}
                # Before format version 3 there was none.
                modality.loadings = Loadings(**found) if found else None
            model.module_.load_state_dict(tensors)
            model.history_ = {
                k: [math.nan if v is None else v for v in values] for k, values in about["history"].items()
            }
            described = about.get("periodic")  # since format version 3
            model.periodic_ = None if described is None else arrays(described)
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

    def _learning_rate(self) -> float:
        """Choose the peak of the learning rate: lower where gradients are noisy, lest the encoder goes astray."""
        clustered = self.n_clusters is not None or self.labels_key is not None
        return self.learning_rate / (
            SCORED_SLOWER if read_gradient(self.gradient, clustered).z != "reparameterized" else 1
        )

    def _checkpoint(
        self,
        folder: str | Path | None,
        minutes: float | None,
        schema: Schema,
        source: Source,
        plan: loop.TrainingPlan,
        hardware: Hardware,
    ) -> Checkpoint | None:
        """Say where to keep what is needed to go on, and what it hangs on."""
        if folder is None:
            return None
        features = json.dumps(schema.to_dict(), sort_keys=True)
        identity = {
            "version": importlib.metadata.version("celldial"),
            "parameters": parameters_of(self),
            "plan": {name: value for name, value in asdict(plan).items() if name != "progress"},
            "checksum of features and covariates": zlib.crc32(features.encode()),
            "checksum of cells": source.fingerprint,
            "hardware": hardware.numeric_settings,
        }
        return Checkpoint(Path(folder), identity, minutes)

    def _build(self, schema: Schema, clusters: Mapping[str, Any] | None) -> Module:
        gradient = read_gradient(self.gradient, clusters is not None)
        config = ModuleConfig(
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
            periodic=read_rhythm(self.periodic) is not None,
            decoder=self.decoder,
            bayesian_loadings=self.bayesian_loadings,
            latent=self.latent,
            prior=self.prior,
            n_components=self.n_components,
            posterior=self.posterior,
            n_clusters=None if clusters is None else len(clusters["names"]),
            n_labels=0 if clusters is None else clusters.get("n_labels", 0),
            gradient=gradient,
            baseline=self.baseline,
            straight_through=self.straight_through,
        )
        return Module(config)

    def _joined(self, adata: AnnData) -> AnnData:
        """Give cells of the fitted model as one AnnData."""
        layer, modality_key = (self.parameters_[name] for name in ("layer", "modality_key"))
        return joined(adata, layer=layer, modality_key=modality_key, schema=self.schema_)

    def _read(self, adata: AnnData, from_: Sequence[str] | None = None) -> tuple[AnnData, Cells]:
        """Read cells of the fitted model: as one AnnData, and as tensors; of some modalities only where named."""
        table = self._joined(adata)
        cells = Cells.from_anndata(table, self.schema_)
        return table, cells if from_ is None else cells.only(*from_)

    def _parts(self, adata: Any, from_: Sequence[str] | None) -> Iterator[tuple[AnnData, Cells]]:
        """Read cells as `_read` does, in one part; those in files in many."""
        if not is_stored(adata):
            yield self._read(adata, from_)
            return
        schema = self.schema_
        keys = [*schema.categories, *schema.continuous, *schema.presence_keys.values()]
        in_obsm = [key for key in map(obsm_key, schema.sources.values()) if key is not None]
        atlas = Atlas.open(adata, layer=schema.layer, obs_keys=keys, obsm_keys=in_obsm, strict=False)
        for table in ahead(atlas.blocks()):
            yield table, self._read(table, from_)[1]

    def _inferred(
        self,
        adata: Any,
        modality: str | None = None,
        sources: Sequence[str] | None = None,
        consequence: str = "they get the prior as their posterior",
        stacklevel: int = 4,
    ) -> tuple[Inferred, pd.DataFrame]:
        """Infer the latent states of cells, by one or some modalities; also gives their ``obs``."""
        self._check_fitted()
        heard = [self._modality(modality)] if modality is not None else sources
        of = None if heard is None else " or ".join(heard)
        parts, tables, n_filled = [], [], 0
        with told_once() if is_stored(adata) else nullcontext():
            for table, cells in self._parts(adata, heard):
                n_filled += int((~cells.empty_c).sum())
                if sources is not None and not is_stored(adata):
                    checks.check_any_count(cells, sources)
                checks.warn_of_empty(table.obs_names.__getitem__, cells, consequence, of, stacklevel)
                parts.append(posterior.infer(self.module_, cells))
                tables.append(table.obs)
        if sources is not None and n_filled == 0:
            checks.check_any_count(cells, sources)
        return posterior.joined(parts), tables[0] if len(tables) == 1 else pd.concat(tables)

    def _filled(self, adata: Any) -> Iterator[Cells]:
        """Read the cells that have counts, on the device, in blocks that can be decoded at once."""
        device, n_filled = posterior.ready(self.module_), 0
        for _, cells in self._parts(adata, None):
            filled = cells.select((~cells.empty_c).nonzero()[:, 0]).to(device)
            n_filled += len(filled)
            if len(filled) > 0:
                yield from in_blocks(placed(self.module_, filled))
        if n_filled == 0:
            checks.check_any_count(cells)

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
            return check_library_size(library_size)
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
        inferred, obs = self._inferred(adata, None, sources, "for them the prior mean is decoded", stacklevel=5)
        return ToDecode(
            modality,
            inferred.state_cz,
            Covariates(*self.schema_.covariates(obs, batch)),
            self._library_size(modality, library_size),
            None if features is None else names.get_indexer(wanted),
            wanted,
            obs,
        )

    def _write_phase(self, adata: AnnData, table: pd.DataFrame) -> None:
        with writable(adata):
            for name in table:
                adata.obs[name] = table[name].array
            # So that later calls know the columns as a model's.
            adata.uns["celldial"] = {**adata.uns.get("celldial", {}), "periodic": copy.deepcopy(self.periodic_)}

    def _write_clusters(self, adata: AnnData, table: pd.DataFrame) -> None:
        names = list(table.columns)
        with writable(adata):
            adata.obsm[CLUSTER_PROBABILITY] = table.set_axis(labels.column_names(names), axis=1)
            adata.obs[CLUSTER] = pd.Categorical.from_codes(np.argmax(table.to_numpy(), axis=1), pd.Index(names))

    def _write(self, adata: AnnData, inferred: Inferred, key_added: str, include_periodic: bool) -> None:
        with writable(adata):
            for name in adata.uns.get("celldial", {}).get("axes", {}):
                if name in adata.obs:  # the score on an axis of the model before
                    del adata.obs[name]
            adata.obsm[key_added] = inferred.embedding_with_place if include_periodic else inferred.embedding
            # Columns of a rhythm stay where another model has none, and with them what is said of them.
            stays = {key: value for key, value in adata.uns.get("celldial", {}).items() if key == "periodic"}
            adata.uns["celldial"] = {
                **stays,
                "version": importlib.metadata.version("celldial"),
                "key_added": key_added,
                "parameters": self.parameters_,
                "schema": self.schema_.to_dict(),
                "history": {name: np.array(values) for name, values in self.history_.items()},
            }
        if self.periodic_ is not None:
            self._write_phase(adata, phase.table(inferred, self.periodic_, adata.obs_names))
        if self.clusters_ is not None:
            self._write_clusters(
                adata, pd.DataFrame(inferred.cluster, adata.obs_names, columns=self.clusters_["names"])
            )


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
        return posterior.expected(module, self.modality, self.z_cz, self.covariates, self.library_size, self.columns)

    def table(self, module: Module) -> pd.DataFrame:
        """Decode to one table."""
        values_cf = np.concatenate(list(self.blocks(module)))
        return pd.DataFrame(values_cf, index=self.obs.index, columns=self.names)


def is_path(data: Any) -> bool:
    """Tell whether cells are in files and nowhere else, so that nothing can be written to them."""
    return is_stored(data) and not isinstance(data, AnnData)


def embedded(module: Module, source: Resident | Stream, adata: Any) -> Inferred | None:
    """Infer the latent states of all cells, also of those that were not trained on; None where they have no AnnData."""
    if isinstance(source, Resident):
        return posterior.infer(module, source.cells)
    if is_path(adata):
        return None
    blocks = (Cells.from_anndata(block, source.schema) for block in ahead(source.atlas.blocks()))
    return posterior.joined([posterior.infer(module, block) for block in blocks])


def parameters_of(model: VAE) -> dict[str, Any]:
    """Return the constructor's arguments in JSON types."""
    return {name: plain(value) for name, value in model.get_params(deep=False).items()}


def plain(value: Any) -> Any:
    """Turn numpy's numbers, and sequences and dicts of them, into those of JSON."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def arrays(described: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the lists that JSON has of a periodic coordinate back into arrays."""
    kinds = {"phases": object, "phase_start": float}
    result: dict[str, Any] = {
        key: np.array(value, dtype=kinds[key]) if key in kinds else value for key, value in described.items()
    }
    if "markers" in result:
        result["markers"] = {phase: np.array(names, dtype=object) for phase, names in result["markers"].items()}
    return result


@contextmanager
def writable(adata: AnnData) -> Iterator[None]:
    """Let a view become an AnnData of its own without a warning: that is what writing to it asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitModificationWarning)
        yield
