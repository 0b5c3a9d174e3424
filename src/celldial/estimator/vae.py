"""`VAE`, the scikit-learn estimator: fitting, embedding, saving. The analyses of `celldial.tl` are its methods, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator

from celldial import tl
from celldial.data.schema import Schema
from celldial.estimator import fitting, mapping, serialization
from celldial.estimator.fitting import FitOptions
from celldial.inference import posterior
from celldial.inference.fitted_model import (
    check_fitted,
    feature_table,
    infer_all,
    is_file_path,
    nonempty_blocks,
    read_from,
)
from celldial.inference.label_classifier import LabelClassifier
from celldial.inference.posterior import Posterior
from celldial.inference.reference import ReferenceSummary
from celldial.io import results
from celldial.model.elbo import BaselineName
from celldial.model.fusion import FusionName
from celldial.model.latents import LatentName
from celldial.model.module import Module
from celldial.model.networks import DecoderName, DispersionName
from celldial.model.priors import PosteriorName, PriorName
from celldial.training import loop
from celldial.utils.argument_types import validate_types
from celldial.utils.random import isolate_rng
from celldial.utils.settings import Precision
from celldial.utils.validation import check_integer, check_writable

__all__ = ["VAE"]


class VAE(BaseEstimator):
    r"""Conditional variational autoencoder for single-cell counts of one or several modalities.

    Each cell has a latent state :math:`z \sim N(0, I)` [1]_. For each modality, a neural network decodes the latent
    state and the covariates to the expected share of each feature in the cell's counts. The expected count is the
    library size times the share, and the counts are distributed around it [2]_. Fitting writes the posterior mean of
    every cell to ``adata.obsm["X_celldial"]``, ready for ``scanpy.pp.neighbors``.

    The modality of each feature comes from ``adata.var["feature_types"]``: genes (``"Gene Expression"``, modality
    ``"rna"``), chromatin peaks (``"Peaks"``, ``"atac"``), proteins (``"Antibody Capture"``, ``"protein"``). Cells may
    lack a modality: there is one encoder per modality, and the posteriors of the modalities that a cell has are fused.
    Every method that accepts an AnnData also accepts a MuData.

    Parameters
    ----------
    n_latent
        Number of latent coordinates.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers of encoder and decoder.
    likelihood
        Distribution of the counts: ``"negative_binomial"`` (one dispersion per feature), ``"poisson"``,
        ``"zero_inflated_negative_binomial"``, or ``"bernoulli"`` (counts are binarized and the depth of each cell is
        accounted for; see `celldial.model.likelihoods.Bernoulli`), or ``"negative_binomial_mixture"`` (background and
        foreground of antibody counts; see `celldial.model.likelihoods.NegativeBinomialMixture`). One for all
        modalities, or a dict by modality. By default Bernoulli for peaks and negative binomial for the others;
        ``{"atac": "poisson"}`` models fragment counts.
    modalities
        Dict that maps the name of each modality to a value of ``adata.var[modality_key]``, or to ``"obsm/key"`` for a
        matrix or DataFrame in ``adata.obsm``. Features with other values are left out. By default all features are
        used, and their types must be known.
    modality_key
        Column of ``adata.var`` with the type of each feature. Without this column all features are genes, or peaks if
        `likelihood` is ``"bernoulli"``.
    presence_keys
        Dict that maps modalities to the boolean column of ``adata.obs`` that marks the cells with this modality; by
        default ``"has_<modality>"`` if there is such a column. A cell without counts of a modality lacks it; the
        columns are compared with the counts.
    modality_weights
        Dict that maps modalities to the weight of their log-likelihood in training. By default, the weight is 1. If the
        first modality has F₁ features and another modality has more, F, the other has the weight √(F₁ / F), so that
        50,000 peaks do not outweigh 1,000 genes.
    fusion
        How the posteriors of several modalities are combined: ``"aligned_product"``, ``"product"``, ``"mixture"``,
        ``"mixture_of_products"`` or ``"mean"``; see `celldial.model.fusion.Fusion`.
    decoder
        How the shares depend on the latent coordinates. ``"network"``: through a neural network. ``"additive"``: up to
        the normalization of the cell, the log share is a sum of functions of one coordinate each, plus the covariates.
        ``"linear"``: the log share is a weighted sum of the coordinates, and `loadings` returns the weights. With an
        additive decoder, each coordinate turns on one program of features in one direction, so one axis is one program
        [9]_; the ELBO is slightly lower. Use more coordinates than there are programs, such as ``n_latent=32``; surplus
        coordinates stay at the prior. `n_hidden` and `n_layers` affect only the encoders of additive and linear models.
    bayesian_loadings
        Whether a linear decoder learns the posterior of each weight, so that `loadings` has credible intervals.
    latent
        Family of the latent coordinates: ``"gaussian"``; ``"laplace"`` or ``"logistic"``, with heavier tails;
        ``"log_normal"``, positive; or ``"logistic_normal"``, topic proportions that sum to 1 (see `topics`). All are
        μ + σ · noise, the last two followed by an exponential or a softmax.
    prior
        Prior of the coordinates: ``"standard"``, mean 0 and standard deviation 1; ``"mixture"``, a learned mixture of
        `n_components`; or ``"flow"``, a learned density without a fixed form [4]_.
    n_components
        Number of components of a mixture prior.
    posterior
        Posterior of the coordinates: ``"diagonal"``, independent coordinates; or ``"flow"``, which can represent
        dependencies between coordinates [5]_.
    n_clusters
        Number of clusters. Each cell then belongs to a cluster, and its coordinates are distributed around the center
        of the cluster. The number may be larger than needed; surplus clusters become empty. See `clusters`.
    labels_key
        Column of ``adata.obs`` with the known labels of some cells, for label transfer: clusters are named after the
        labels, and a label is inferred for the other cells. `n_clusters` is the number of labels by default; a larger
        number leaves room for new cell types.
    unknown_label
        Value of that column for cells without a label; missing values count as unknown, too.
    gradient
        Gradient estimator. For the coordinates: ``"reparameterized"``, or ``"score_function"`` [6]_, which needs no
        derivative of the decoder and has a far larger variance, so the learning rate is divided by 4. For clusters:
        ``"enumerate"`` (the default), which sums over all clusters; ``"gumbel_softmax"`` [7]_, relaxed samples with a
        temperature that falls during training; or ``"score_function"``. A string applies to the clusters if the model
        has clusters and the estimator supports them; a dict ``{"z": ..., "cluster": ...}`` sets both.
    baseline
        Control variate of the score function: ``"learned"``, a network that predicts each cell's ELBO [8]_,
        ``"moving_average"``, or None.
    straight_through
        Whether relaxed cluster samples are rounded to one cluster in the forward pass, with the gradient of the relaxed
        samples.
    batch_key
        Column of ``adata.obs`` with the technical batch to correct for.
    integration
        How strongly the batches are pulled together in latent space, at least 0. With 0, only the effects of the batch
        on the counts are modeled. 1 suits most data; if batches that share cell types still do not mix, try 3 or 10.
        Cell types that only one batch has are not pulled; see `celldial.model.integration`.
    dispersion
        ``"feature"``: one dispersion per feature. ``"feature-batch"``: each feature has its own dispersion in each
        batch, shrunk toward that of the feature. It applies to negative binomial likelihoods, and needs a `batch_key`.
    categorical_covariate_keys, continuous_covariate_keys
        Further columns of ``adata.obs`` that the decoder depends on, and that can be set to other values in decoding.
    basis
        Dict of continuous covariates whose effect is a smooth curve, so that values between those of the cells are
        interpolated: ``{"time": "spline"}``, a natural cubic spline with knots at up to four quantiles of the distinct
        values (``("spline", 6)`` for six knots), which continues as a line beyond them; or
        ``{"hour": ("fourier", 24)}``, a periodic curve with the period in units of the covariate.
    layer
        Layer with raw counts; ``None`` for ``adata.X``.
    periodic
        A periodic process, added as a latent coordinate on a circle: ``"cell_cycle"``, inferred from the marker genes
        of [3]_ (human or mouse, in any capitalization); a dict for another process,
        ``{"name": "circadian", "phases": {"day": [...], "night": [...]}}``, with markers of phases that divide the
        circle evenly, and optionally ``"peaks"``, gene to the time at which it peaks, in units of ``"period"`` (1 by
        default; with only two phases and no peaks, the direction of the angle is open); or True to search for a circle
        without markers, which is then called ``"cycle"``.
    gene_symbols
        Column of ``adata.var`` with the gene symbols to match markers with, if ``adata.var_names`` are identifiers.
    dropout_rate
        Fraction of the counts that is hidden from the encoder during training, against overfitting. Counts of proteins
        are not hidden, because they are rarely 0.
    learning_rate
        Peak learning rate.
    seed
        Seed of all random numbers. The same seed, data and number of threads give the same result, bit by bit on a CPU.

    Attributes
    ----------
    parameters_ : dict of str to object
        The parameters at the time of `fit`. Later changes of parameters take effect in the next `fit`.
    schema_ : Schema
        Modalities, features, layer and covariates of the training cells.
    module_ : Module
        The networks.
    history_ : dict of str to list of float
        Quantities after each epoch, in nats per cell; see `celldial.training.loop.fit`.
    library_size_quantiles_ : dict of str to numpy.ndarray
        Modality to 101 evenly spaced quantiles of the library sizes of the training cells.
    periodic_ : dict of str to object, or None
        Description of the periodic coordinate: its ``name``; if it has phases, their names (``phases``), the angles in
        radians where they start (``phase_start``), the ``markers`` found for each, the posterior probability of the
        direction of the angle (``direction_probability``), and the number of genes that it comes from
        (``direction_genes``); whether the process was found (``is_found``), with its p-value (``p_value``), if there
        are enough genes to test, and the fold changes of markers (``fold_change``); and ``gene_symbols`` if given. If
        the process was not found or its direction is open, there are no phases.
    clusters_ : dict of str to object, or None
        Description of the clusters: their ``names``; with labels also ``labels_key``, ``unknown_label`` and
        ``n_labels``.
    label_classifier_ : LabelClassifier or None
        The labeled cells in latent space, and the calibration of label probabilities; see
        `celldial.inference.label_classifier`.
    reference_ : ReferenceSummary or None
        Training cells in latent space, and distances and likelihoods of validation cells, which `mapping_quality`
        compares new cells with; see `celldial.inference.reference`.
    fingerprint_ : str
        Checksum of the weights. It is stored with each result in an AnnData, so you can see which model wrote the
        result.

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
    label_classifier_: LabelClassifier | None
    reference_: ReferenceSummary | None
    fingerprint_: str

    # Analyses, each documented in `celldial.tl`.
    axes = tl.axes
    check = tl.check
    clusters = tl.clusters
    compare_gradients = tl.compare_gradients
    decode = tl.decode
    denoise = tl.denoise
    denoise_to_file = tl.denoise_to_file
    differential = tl.differential
    find_axis = tl.find_axis
    impute = tl.impute
    impute_to_file = tl.impute_to_file
    integration_report = tl.integration_report
    kinetics = tl.kinetics
    latent_traverse = tl.latent_traverse
    link_peaks = tl.link_peaks
    loadings = tl.loadings
    markers = tl.markers
    mapping_quality = tl.mapping_quality
    name_axes = tl.name_axes
    phase = tl.phase
    posterior_predictive = tl.posterior_predictive
    sample = tl.sample
    sweep_gradients = tl.sweep_gradients
    topics = tl.topics

    map_query = mapping.map_query

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
        fusion: FusionName = "aligned_product",
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
        integration: float = 1.0,
        dispersion: DispersionName = "feature",
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        basis: Mapping[str, Any] | None = None,
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
        self.integration = integration
        self.dispersion = dispersion
        self.categorical_covariate_keys = categorical_covariate_keys
        self.continuous_covariate_keys = continuous_covariate_keys
        self.basis = basis
        self.layer = layer
        self.periodic = periodic
        self.gene_symbols = gene_symbols
        self.dropout_rate = dropout_rate
        self.learning_rate = learning_rate
        self.seed = seed

    def fit(
        self,
        adata: Any,
        y: None = None,
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
            Cells with raw counts; cells may lack modalities. Cells without any count are not used for training, and
            their posterior is the prior. Alternatively, cells in files, which are read in blocks: a backed AnnData, the
            path of an ``.h5ad`` file or a ``.zarr`` store, or a list of paths. If there are several files, the features
            that all of them have are used. With files, validation cells are chosen in short runs of neighboring cells.
        y
            Ignored; scikit-learn's convention.
        max_epochs
            Passes over the cells; ``"auto"`` chooses by the number of cells.
        batch_size
            Cells in a minibatch, summed over all devices; ``"auto"`` is 128, less for few cells, and up to 1,024 for
            very many cells on a GPU.
        validation_size
            Fraction of the cells, chosen at random, for validation: for early stopping and `history_`.
        validation_cells
            The validation cells, as names or a boolean mask. They replace the random choice.
        early_stopping
            Stop if the validation ELBO has not improved for a quarter of the epochs (at least 10). In any case the
            weights of the epoch with the best validation ELBO are kept.
        key_added
            Key of ``adata.obsm`` for the embedding.
        include_periodic
            Whether to append the point on the circle to the embedding as two columns, so that cells of different phases
            are separated. By default the embedding is free of the periodic process.
        progress
            Whether to show a progress bar with epoch, ELBO and remaining time.
        device, precision
            Device and number format of the training, in place of those in `celldial.settings`.
        compile
            Whether to compile the networks with ``torch.compile``, which takes a minute and needs a C++ compiler.
        devices, num_nodes, strategy
            Number of devices and nodes, and how processes are launched, in the terms of Lightning Fabric. Each device
            has its own process and a part of every minibatch. By default one device, or all processes that ``torchrun``
            started. Without ``torchrun``, the processes of several devices are started here, which requires
            ``if __name__ == "__main__":`` in a script.
        checkpoint
            Folder for checkpoints. The same call with the same cells resumes an earlier training that was interrupted
            for any reason, and ends with the same weights (on a CPU bit by bit). A completed training is not repeated.
        checkpoint_minutes
            Minutes between checkpoints; by default one after each epoch.
        loggers
            Loggers of Lightning Fabric (TensorBoard, CSV, W&B), which receive `history_` epoch by epoch.

        Returns
        -------
        VAE
            The model itself. `fit` writes the embedding, as `transform` returns it, to ``adata.obsm[key_added]``, shape
            ``(cells, n_latent)``, and the parameters, schema and history to ``adata.uns["celldial"]``. With a periodic
            coordinate, it also writes the columns that `phase` returns to ``adata.obs``; with clusters, it also writes
            the results of `clusters`. Files are never changed: nothing is written for paths, and a backed AnnData is
            changed in memory only.

        Raises
        ------
        ValueError, TypeError, KeyError
            The arguments, counts or covariates are invalid; the message names the problem, its place and the solution.
            The AnnData is left unchanged.
        MemoryError
            Training would need more memory than is available; the message has the numbers.
        FloatingPointError
            The ELBO became infinite or NaN.
        OSError
            A file could not be read, or a checkpoint could not be written.

        Notes
        -----
        Ctrl-C ends the training early: the model keeps the weights of the best epoch so far, and all results are
        written. With a checkpoint, the same call resumes the training.

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
        options = FitOptions(
            max_epochs=max_epochs,
            batch_size=batch_size,
            validation_size=validation_size,
            validation_cells=validation_cells,
            early_stopping=early_stopping,
            key_added=key_added,
            include_periodic=include_periodic,
            progress=progress,
            device=device,
            precision=precision,
            compile=compile,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            checkpoint=checkpoint,
            checkpoint_minutes=checkpoint_minutes,
            loggers=loggers,
        )
        fitting.fit(self, adata, options)
        return self

    def fit_transform(self, adata: Any, y: None = None, **options: Any) -> np.ndarray:
        """Fit the model, and return the embedding.

        Parameters
        ----------
        adata
            As in `fit`.
        y
            Ignored; scikit-learn's convention.
        **options
            Arguments of `fit`.

        Returns
        -------
        numpy.ndarray
            The embedding as `transform` returns it, float32, shape ``(cells, n_latent)``. The same results are written
            as by `fit`.

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
        if is_file_path(adata):
            return self.transform(adata, include_periodic=options.get("include_periodic", False))
        return results.embedding_of_fit(adata)

    def partial_fit(
        self,
        adata: Any,
        y: None = None,
        *,
        max_epochs: int = 10,
        batch_size: int | Literal["auto"] = "auto",
        validation_size: float = 0.1,
        validation_cells: Sequence[Any] | np.ndarray | None = None,
        early_stopping: bool = True,
        key_added: str = "X_celldial",
        include_periodic: bool = False,
        layer: str | None = None,
        progress: bool = True,
    ) -> VAE:
        """Continue the training from the current weights, on the same cells or on new ones with the same schema.

        The learning rate peaks at a quarter of `learning_rate`, and the KL term has full weight from the start. A model
        that is not fitted yet is fitted as by `fit`. The history is continued.

        Parameters
        ----------
        adata
            Cells with raw counts, and the features and covariates of the model.
        y
            Ignored; scikit-learn's convention.
        max_epochs
            Further passes over the cells.
        batch_size, validation_size, validation_cells, early_stopping, key_added, include_periodic
            As in `fit`.
        layer
            As in `transform`; only for a model that is fitted.
        progress
            As in `fit`.

        Returns
        -------
        VAE
            The model itself. The same results are written as by `fit`.

        Raises
        ------
        ValueError, TypeError, KeyError, FloatingPointError
            As `fit`; also if features or categories are not those of the model.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> model = model.partial_fit(adata, max_epochs=2, progress=False)
        >>> len(model.history_["elbo_validation"])
        3
        """
        options = FitOptions(
            max_epochs=max_epochs,
            batch_size=batch_size,
            validation_size=validation_size,
            validation_cells=validation_cells,
            early_stopping=early_stopping,
            key_added=key_added,
            include_periodic=include_periodic,
            progress=progress,
        )
        if self.__sklearn_is_fitted__():
            fitting.partial_fit(self, adata, options, layer)
        elif layer is not None:
            raise ValueError(f"layer is {layer!r}, but the model is not fitted yet: set VAE(layer={layer!r})")
        else:
            fitting.fit(self, adata, options)
        return self

    @validate_types
    def transform(
        self,
        adata: Any,
        *,
        modality: str | None = None,
        key_added: str | None = None,
        include_periodic: bool = False,
        layer: str | None = None,
    ) -> np.ndarray:
        """Return the embedding of cells: the posterior mean of the latent coordinates.

        For positive coordinates or topics it is the exponential or softmax of that mean.

        Parameters
        ----------
        adata
            Cells with at least half of the model's features (in any order), its covariates, and one or more of its
            modalities; or files of cells as in `fit`. The embedding of cells without any count is the prior mean, 0,
            and a warning reports how many such cells there are.
        modality
            Infer from this modality alone, as if no other had been measured; by default from all modalities that a cell
            has.
        key_added
            Key of ``adata.obsm`` to write the embedding to, such as ``"X_celldial_rna"``. By default it is not written.
        include_periodic
            Whether to append two columns with the point on the circle: activity times cosine and sine of the angle.
        layer
            Layer with raw counts, if they are not in the layer that the model was fitted to; ``"X"`` for ``adata.X``.

        Returns
        -------
        numpy.ndarray
            The embedding, float32, shape ``(cells, n_latent)``, or two columns more with `include_periodic`. It is also
            written to ``adata.obsm[key_added]`` if `key_added` is given.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError, TypeError, KeyError
            Counts, features, covariates or modalities of the cells do not match the model; the message names the
            problem and the solution.
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
        check_writable(adata, key_added)
        if key_added is not None:
            results.check_key(adata, "obsm", key_added)
        latent_state, _ = infer_all(read_from(self, layer), adata, modality)
        embedding_cz = latent_state.embedding_with_circle if include_periodic else latent_state.embedding
        if key_added is not None:
            results.write_embedding(adata, self.fingerprint_, key_added, embedding_cz)
        return embedding_cz

    @validate_types
    def latent_posterior(self, adata: Any, *, modality: str | None = None, layer: str | None = None) -> Posterior:
        """Return mean and standard deviation of the posterior of each cell's latent coordinates.

        The posterior of cells without any count is the prior, mean 0 and standard deviation 1. A warning reports how
        many such cells there are.

        Parameters
        ----------
        adata, modality, layer
            As in `transform`.

        Returns
        -------
        Posterior
            Mean and standard deviation, float32, each of shape ``(cells, n_latent)``. For positive coordinates and
            topics they refer to the values before the exponential or softmax.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError, TypeError, KeyError, FloatingPointError, OSError
            As `transform`.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> mean, standard_deviation = model.latent_posterior(adata)
        >>> mean.shape, standard_deviation.shape
        ((700, 10), (700, 10))
        """
        latent_state, _ = infer_all(read_from(self, layer), adata, modality)
        return Posterior(latent_state.mean, latent_state.standard_deviation)

    @validate_types
    def score(self, adata: Any, y: None = None, *, n_samples: int = 1, layer: str | None = None) -> float:
        """Return the mean ELBO of held-out cells in nats per cell; higher is better.

        Latent samples come from `seed`, and the KL term has full weight. Cells without any count are left out.

        Parameters
        ----------
        adata
            Cells that were not used for training; or files of such cells.
        y
            Ignored; scikit-learn's convention.
        n_samples
            Latent samples per cell. With more than one, the result is the importance-weighted bound [1]_. It approaches
            the log probability of the counts as the number grows, and can be used to compare models with different
            posteriors.
        layer
            As in `transform`.

        Returns
        -------
        float
            Nats per cell, mean over the cells that have counts.

        Raises
        ------
        NotFittedError
            The model is not fitted yet.
        ValueError
            No cell has a count, or `n_samples` is less than 1.
        ValueError, TypeError, KeyError, OSError
            As `transform`.

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
        model = read_from(self, layer)
        check_integer("n_samples", n_samples)
        with isolate_rng(self.seed):
            blocks = nonempty_blocks(model, adata)
            if n_samples > 1:
                return posterior.importance_weighted_bound(self.module_, blocks, n_samples)
            return loop.evaluate(self.module_, blocks)["elbo_validation"]

    @validate_types
    def save(self, path: str | Path) -> None:
        """Write the fitted model to one file of JSON and safetensors; loading it runs no code.

        The file appears only once it is complete; an existing one is replaced.

        Parameters
        ----------
        path
            File to write; by convention ``NAME.celldial``.

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
        check_fitted(self)
        serialization.save(self, Path(path).expanduser())

    @classmethod
    @validate_types
    def load(cls, path: str | Path) -> VAE:
        """Return the model that `save` wrote to a file, with this version or an earlier one.

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
            The file is not a model, is damaged, or was written by a later version.

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
        return serialization.load(cls, Path(path).expanduser())

    @property
    def feature_names_(self) -> tuple[str, ...]:
        """Names of all features that the model decodes, modality by modality, in the order of the model."""
        return tuple(feature_table(self.schema_).index)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "module_")
