"""Labels of cells from the labeled cells around them in latent space: probability, typicality, calibration.

The label of a cell has two estimates: one from the density of each label (a multivariate t distribution with a common
covariance matrix), one from the nearest labeled cells. Their mean is the answer, at a temperature that labeled cells
determine whose labels were not used in training. A cell is not typical if it is far from the labeled cells, and in
particular if other cells are much closer: a type without a label is a dense group of cells without labels.

Axis suffixes: ``c`` cells, ``i`` labeled cells nearest to a cell, ``k`` labels, ``r`` labeled cells of the training
data, ``z`` latent coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize_scalar
from sklearn.neighbors import NearestNeighbors

__all__ = ["LabelClassifier", "LabelResult", "calibration_error", "fit_label_classifier"]

# Labeled cells that vote, and the rank of the one whose distance is the width of the kernel.
N_NEIGHBORS, KERNEL_RANK = 15, 8
# Labeled cells whose mean distance is the distance of a cell from the labeled cells.
N_DISTANCE = 5
# Powers of this distance and of the ratio of the distances of the 15th labeled cell and of the 15th cell.
DISTANCE_POWER, RATIO_POWER = 1 / 3, 2 / 3
# Degrees of freedom of the density of a label: with heavy tails, cells between labels are uncertain.
DEGREES_OF_FREEDOM = 5.0
# Votes are divided by the number of labeled cells of the label to this power, so that rare labels can win.
BALANCE = 0.5
# Probability that is added to each label before normalization.
SMOOTHING = 1e-3
# Fraction of the held-out labeled cells that count as typical.
TYPICAL_FRACTION = 0.95
# Prior of the standard deviation of log distances, and the number of cells that it counts for.
PRIOR_DEVIATION, PRIOR_CELLS = 0.3, 4
# Prior of the temperature: its median, as found on data with many labels, and the standard deviation of its logarithm.
# Bounds of the logarithm.
USUAL_TEMPERATURE, TEMPERATURE_DEVIATION, LOG_TEMPERATURE_BOUNDS = 1.2, 0.25, (-1.5, 1.5)
# Quantile of the distances in a batch that is compared with that of the held-out labeled cells, and upper bound of the
# ratio. A low quantile, because a part of the cells of a batch may have none of the labels.
BATCH_QUANTILE, MAX_BATCH_SCALE = 0.25, 2.0
# Cells in a bin of the calibration error, its largest number of bins, and the folds in which temperatures are checked.
CELLS_PER_BIN, MAX_BINS, N_FOLDS = 50, 10, 5
# Below this distance, in units of the typical one, a labeled cell is the cell itself.
SAME_CELL = 1e-3
# Decimals of the stored coordinates, so that a file is small and a loaded model returns the same numbers.
DECIMALS = 4
# Largest number of labeled cells of each label that are kept, and of other training cells that calibrate distances.
MAX_CELLS_PER_LABEL, MAX_CONTEXT = 500, 20_000

Array = NDArray[Any]


class LabelResult(NamedTuple):
    """Labels of cells.

    Parameters
    ----------
    probability_ck
        Probability of each label, given that one of them is right.
    distance_c
        Distance from the labeled cells; a cell is typical if it is at most 1.
    neighbor_c
        Label for which the nearest labeled cells vote.
    """

    probability_ck: Array
    distance_c: Array
    neighbor_c: Array


@dataclass(frozen=True)
class LabelClassifier:
    """Labels from the labeled cells in latent space. Create it with `fit_label_classifier`.

    Parameters
    ----------
    z_rz, label_r
        Coordinates and labels of the labeled cells.
    n_k
        Number of labeled training cells of each label, of which those above may be a sample.
    spread_z
        Standard deviation of the coordinates over all training cells.
    temperature
        Exponent of the calibration: probabilities to the power of its inverse.
    max_distance
        Largest distance of a typical cell.
    n_context
        Number of cells without a label for which that distance is right. More cells are sampled, because it depends on
        the number.
    usual_distance
        Low quantile of the distances of the held-out labeled cells, which those of other batches are compared with;
        None if unknown.
    batch_scale
        Batch to the factor by which distances of its cells exceed those of the held-out labeled cells.
    calibration_error
        Expected calibration error on the held-out labeled cells; None if there are fewer than 50.
    n_held_out
        Number of held-out labeled cells.
    """

    z_rz: Array
    label_r: Array
    n_k: Array
    spread_z: Array
    temperature: float = USUAL_TEMPERATURE
    max_distance: float = np.inf
    n_context: int = 0
    usual_distance: float | None = None
    batch_scale: Mapping[str, float] = field(default_factory=dict)
    calibration_error: float | None = None
    n_held_out: int = 0

    # --- Answers ------------------------------------------------------------------------------------------------------

    def classify(self, z_cz: Array, batch_c: Array | None = None) -> LabelResult:
        """Return the labels of cells, which belong together; `batch_c` has the names of their batches."""
        distance_ci, index_ci = self._nearest(z_cz)
        vote_ck = self._vote(distance_ci, index_ci)
        probability_ck = sharpen(normalize(self._density(z_cz) + vote_ck), self.temperature)
        scale_c = np.ones(len(z_cz))
        if batch_c is not None:
            name_b, code_c = np.unique(np.asarray(batch_c, dtype=str), return_inverse=True)
            scale_c = np.array([self.batch_scale.get(name, 1.0) for name in name_b.tolist()])[code_c]
        relative_c = np.zeros(len(z_cz))
        if np.isfinite(self.max_distance):
            relative_c = self._distance(z_cz, distance_ci) / (self.max_distance * scale_c)
        return LabelResult(probability_ck, relative_c, vote_ck.argmax(1))

    def _density(self, z_cz: Array) -> Array:
        """Return the probability of each label by Bayes' rule from the densities of the labels."""
        mean_kz, precision_zz = self._means_and_precision
        n_latent = z_cz.shape[1]
        square_ck = np.stack(
            [np.einsum("cz,zy,cy->c", z_cz - mean_z, precision_zz, z_cz - mean_z) for mean_z in mean_kz], 1
        )
        # A mean of few cells is uncertain, which widens the predictive density.
        widening_k = 1 + 1 / np.maximum(self.n_k, 1)
        log_density_ck = -0.5 * (DEGREES_OF_FREEDOM + n_latent) * np.log1p(square_ck / widening_k / DEGREES_OF_FREEDOM)
        log_p_ck = log_density_ck - 0.5 * n_latent * np.log(widening_k) + np.log(self.n_k + 1)
        log_p_ck = np.where(self.n_k > 0, log_p_ck, -np.inf)
        return normalize(np.exp(log_p_ck - log_p_ck.max(1, keepdims=True)))

    def _vote(self, distance_ci: Array, index_ci: Array) -> Array:
        """Return the votes of the nearest labeled cells, weighted by distance."""
        width_c1 = distance_ci[:, [min(KERNEL_RANK, distance_ci.shape[1]) - 1]]
        weight_ci = np.exp(-0.5 * (distance_ci / np.maximum(width_c1, 1e-12)) ** 2)
        n_kept_k = np.maximum(np.bincount(self.label_r, minlength=len(self.n_k)), 1)
        weight_ci = weight_ci * (np.maximum(self.n_k, 1) ** (1 - BALANCE) / n_kept_k)[self.label_r[index_ci]]
        vote_ck = np.stack([(weight_ci * (self.label_r[index_ci] == k)).sum(1) for k in range(len(self.n_k))], 1)
        return normalize(normalize(vote_ck) + SMOOTHING * (self.n_k > 0))

    def _distance(self, z_cz: Array, distance_ci: Array) -> Array:
        """Return the distance from the labeled cells, larger if other cells are closer than these."""
        is_labeled_c = self._tree.kneighbors(z_cz, 1)[0][:, 0] < self._tolerance
        context_cz = z_cz[~is_labeled_c]
        if len(context_cz) > self.n_context:
            context_cz = np.random.default_rng(0).choice(context_cz, self.n_context, replace=False, shuffle=False)
        n_neighbors = distance_ci.shape[1]
        any_rz = np.concatenate([self.z_rz, context_cz])
        any_ci = NearestNeighbors().fit(any_rz).kneighbors(z_cz, n_neighbors + 1)[0]
        any_ci = without_self(any_ci, any_ci, self._tolerance)[0]
        ratio_c = distance_ci[:, -1] / np.maximum(any_ci[:, -1], self._tolerance)
        distance_c: Array = distance_ci[:, :N_DISTANCE].mean(1) ** DISTANCE_POWER * ratio_c**RATIO_POWER
        return distance_c

    def _nearest(self, z_cz: Array) -> tuple[Array, Array]:
        """Return distances and indices of the nearest labeled cells, without the cell itself."""
        n_neighbors = min(N_NEIGHBORS + 1, len(self.z_rz))
        distance_ci, index_ci = self._tree.kneighbors(z_cz, n_neighbors)
        return without_self(distance_ci, index_ci, self._tolerance)

    @property
    def _tolerance(self) -> float:
        """Distance below which a labeled cell is the cell itself."""
        return SAME_CELL * float(np.sqrt((self.spread_z**2).sum()))

    @cached_property
    def _tree(self) -> NearestNeighbors:
        return NearestNeighbors().fit(self.z_rz)

    @cached_property
    def _means_and_precision(self) -> tuple[Array, Array]:
        """Means of the labels, and the inverse of their common covariance matrix, shrunk towards its diagonal."""
        n_latent, kept_k = self.z_rz.shape[1], np.bincount(self.label_r, minlength=len(self.n_k))
        indicator_rk = np.eye(len(kept_k))[self.label_r]
        mean_kz = indicator_rk.T @ self.z_rz / np.maximum(kept_k, 1)[:, None]
        residual_rz = self.z_rz - mean_kz[self.label_r]
        n_labels = int((kept_k > 0).sum())
        # As if each label had one more cell, scattered like all cells: a label may have a single cell.
        variance_z = ((residual_rz**2).sum(0) + n_labels * self.spread_z**2) / len(self.z_rz)
        n_prior = n_latent + 2
        scatter_zz = residual_rz.T @ residual_rz + n_prior * np.diag(variance_z)
        return mean_kz, np.linalg.inv(scatter_zz / (max(len(self.z_rz) - n_labels, 0) + n_prior))

    # --- Calibration --------------------------------------------------------------------------------------------------

    def calibrate(
        self, z_cz: Array, label_c: Array, held_out_c: Array, batch_c: Array | None, seed: int
    ) -> LabelClassifier:
        """Return the classifier with temperature and largest distance from held-out labeled cells.

        Parameters
        ----------
        z_cz
            Coordinates of the training cells that are not among the labeled cells of the classifier.
        label_c, held_out_c
            Their labels, and whether they have one.
        batch_c
            Names of their batches, if there are batches.
        seed
            Seed of the folds.
        """
        classifier = replace(self, n_context=len(z_cz), temperature=1.0)
        distance_c = classifier._distance(z_cz, self._nearest(z_cz)[0])
        expected_c = distance_c[held_out_c]
        usual = float(np.quantile(expected_c, BATCH_QUANTILE))
        scale = {}
        if batch_c is not None:
            # Cells of another batch than the labeled ones are further from these, even if they have the same label.
            for name in sorted(set(batch_c[~held_out_c]) - set(batch_c[held_out_c])):
                scale[str(name)] = relative_scale(distance_c[~held_out_c & (batch_c == name)], usual)
        probability_ck, known_c = classifier.classify(z_cz[held_out_c]).probability_ck, label_c[held_out_c]
        error = None
        if len(known_c) >= CELLS_PER_BIN:
            error = calibration_error(temper_in_folds(probability_ck, known_c, seed), known_c)
        return replace(
            classifier,
            temperature=fit_temperature(probability_ck, known_c),
            max_distance=typical_limit(expected_c),
            usual_distance=usual,
            batch_scale=scale,
            calibration_error=error,
            n_held_out=len(known_c),
        )

    def add_batches(self, z_cz: Array, batch_c: Array, names: Sequence[str]) -> LabelClassifier:
        """Return the classifier with scales for further batches; it is the same if distances were not calibrated.

        Parameters
        ----------
        z_cz, batch_c
            Coordinates of cells, and the names of their batches.
        names
            The batches to add.
        """
        if self.usual_distance is None:
            return self
        batch_c, scale = np.asarray(batch_c, dtype=str), dict(self.batch_scale)
        for name in names:
            z_of_batch_cz = z_cz[batch_c == name]
            if len(z_of_batch_cz):
                distance_c = self._distance(z_of_batch_cz, self._nearest(z_of_batch_cz)[0])
                scale[name] = relative_scale(distance_c, self.usual_distance)
        return replace(self, batch_scale=scale)

    # --- Files --------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the classifier in JSON types."""
        arrays: dict[str, Any] = {name: getattr(self, name).tolist() for name in ("z_rz", "label_r", "n_k", "spread_z")}
        return arrays | {
            "temperature": self.temperature,
            "max_distance": None if np.isinf(self.max_distance) else self.max_distance,
            "n_context": self.n_context,
            "usual_distance": self.usual_distance,
            "batch_scale": dict(self.batch_scale),
            "calibration_error": self.calibration_error,
            "n_held_out": self.n_held_out,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> LabelClassifier:
        """Return the classifier that `to_dict` described."""
        types = {"z_rz": float, "label_r": int, "n_k": int, "spread_z": float}
        arrays: dict[str, Any] = {name: np.array(stored[name], dtype=dtype) for name, dtype in types.items()}
        largest = np.inf if stored["max_distance"] is None else stored["max_distance"]
        return cls(**{**stored, **arrays, "max_distance": largest})


def fit_label_classifier(
    z_cz: Array, label_c: Array, held_out_c: Array, n_labels: int, batch_c: Array | None, seed: int
) -> LabelClassifier:
    """Fit a classifier to training cells.

    Parameters
    ----------
    z_cz
        Latent coordinates of training cells.
    label_c
        Their labels; -1 if unknown.
    held_out_c
        Whether the label of a cell was held out from training. These labels calibrate the probabilities and the largest
        distance, and are added to the labeled cells afterwards.
    n_labels
        Number of labels.
    batch_c
        Names of the batches of the cells, if there are batches.
    seed
        Seed of the choice of labeled cells.
    """
    z_cz = z_cz.astype(np.float64).round(DECIMALS)
    spread_z = np.maximum(z_cz.std(0), 10.0**-DECIMALS)
    known_c = label_c >= 0

    def fit(used_c: Array) -> LabelClassifier:
        index_r = sample_per_label(np.where(used_c, label_c, -1), seed)
        n_k = np.bincount(label_c[used_c], minlength=n_labels)
        return LabelClassifier(z_cz[index_r], label_c[index_r], n_k, spread_z)

    classifier = fit(known_c)
    if not held_out_c.any():
        return classifier
    trained = fit(known_c & ~held_out_c)
    others = np.flatnonzero(~known_c | held_out_c)
    if len(others) > MAX_CONTEXT:
        others = np.sort(np.random.default_rng(seed).choice(others, MAX_CONTEXT, replace=False))
    batch = None if batch_c is None else batch_c[others]
    calibrated = trained.calibrate(z_cz[others], label_c[others], held_out_c[others], batch, seed)
    return replace(calibrated, z_rz=classifier.z_rz, label_r=classifier.label_r, n_k=classifier.n_k)


def relative_scale(distance_c: Array, usual: float) -> float:
    """Return the factor by which distances of a batch exceed the usual ones, from 1 to `MAX_BATCH_SCALE`."""
    return float(np.clip(np.quantile(distance_c, BATCH_QUANTILE) / usual, 1.0, MAX_BATCH_SCALE))


def sample_per_label(label_c: Array, seed: int) -> Array:
    """Return the indices of at most `MAX_CELLS_PER_LABEL` cells of each label, in ascending order."""
    generator = np.random.default_rng(seed)
    chosen = [np.flatnonzero(label_c == label) for label in np.unique(label_c[label_c >= 0])]
    chosen = [
        generator.choice(index, MAX_CELLS_PER_LABEL, replace=False) if len(index) > MAX_CELLS_PER_LABEL else index
        for index in chosen
    ]
    return np.sort(np.concatenate(chosen))


def typical_limit(distance_c: Array) -> float:
    """Return the limit below which a new cell of a known label is with probability `TYPICAL_FRACTION`.

    With enough cells it is the conformal quantile of their distances. With fewer it is a prediction limit under a log-
    normal distribution, whose variance has a prior.
    """
    n_cells = len(distance_c)
    level = np.ceil((n_cells + 1) * TYPICAL_FRACTION) / n_cells
    if level <= 1:
        return float(np.quantile(distance_c, level, method="higher"))
    log_c = np.log(np.maximum(distance_c, 1e-12))
    degrees = n_cells - 1 + PRIOR_CELLS
    variance = (((log_c - log_c.mean()) ** 2).sum() + PRIOR_CELLS * PRIOR_DEVIATION**2) / degrees
    margin = stats.t.ppf(TYPICAL_FRACTION, degrees) * np.sqrt(variance * (1 + 1 / n_cells))
    return float(np.exp(log_c.mean() + margin))


def temper_in_folds(probability_ck: Array, label_c: Array, seed: int) -> Array:
    """Return probabilities, each at the temperature that the cells of the other folds determine."""
    fold_c = np.random.default_rng(seed).permutation(len(label_c)) % N_FOLDS
    tempered_ck = np.empty_like(probability_ck)
    for fold in np.unique(fold_c):
        rest_c = fold_c != fold
        temperature = fit_temperature(probability_ck[rest_c], label_c[rest_c])
        tempered_ck[~rest_c] = sharpen(probability_ck[~rest_c], temperature)
    return tempered_ck


def without_self(distance_ci: Array, index_ci: Array, tolerance: float) -> tuple[Array, Array]:
    """Remove each cell from its own nearest cells, and the last of them from those of other cells."""
    if distance_ci.shape[1] < 2:
        return distance_ci, index_ci
    is_same_c1 = distance_ci[:, :1] < tolerance
    distance, index = (np.where(is_same_c1, part_ci[:, 1:], part_ci[:, :-1]) for part_ci in (distance_ci, index_ci))
    return distance, index


def fit_temperature(probability_ck: Array, label_c: Array) -> float:
    """Return the temperature of the highest posterior density, given the labels of cells."""
    log_p_ck = np.log(np.maximum(probability_ck, 1e-12))

    def loss(log_temperature: float) -> float:
        tempered_ck = log_p_ck / np.exp(log_temperature)
        chosen_c = tempered_ck[np.arange(len(label_c)), label_c]
        log_sum_c = np.logaddexp.reduce(tempered_ck, axis=1)
        deviation = (log_temperature - np.log(USUAL_TEMPERATURE)) / TEMPERATURE_DEVIATION
        return float((log_sum_c - chosen_c).sum() + 0.5 * deviation**2)

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded").x))


def calibration_error(probability_ck: Array, label_c: Array) -> float:
    """Return the expected calibration error of the highest probabilities.

    The cells are binned by their highest probability, with about the same number of cells in each bin. The error is the
    mean over cells of the difference between the mean highest probability in the bin and the fraction of right labels.
    """
    confidence_c, is_right_c = probability_ck.max(1), probability_ck.argmax(1) == label_c
    n_bins = int(np.clip(len(label_c) // CELLS_PER_BIN, 1, MAX_BINS))
    bins = np.array_split(np.argsort(confidence_c, kind="stable"), n_bins)
    return float(sum(abs((confidence_c - is_right_c)[index].sum()) for index in bins) / len(label_c))


def sharpen(probability_ck: Array, temperature: float) -> Array:
    """Return probabilities to the power of the inverse of the temperature, normalized."""
    return normalize(np.maximum(probability_ck, 1e-12) ** (1 / temperature))


def normalize(weight_ck: Array) -> Array:
    """Divide by the sum over labels; a cell without any weight gets the same probability for all labels."""
    total_c1 = weight_ck.sum(1, keepdims=True)
    share_ck = weight_ck / np.where(total_c1 > 0, total_c1, 1)
    normalized_ck: Array = np.where(total_c1 > 0, share_ck, 1 / weight_ck.shape[1])
    return normalized_ck
