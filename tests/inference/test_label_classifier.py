"""Labels from labeled cells in latent space: who gets which label, who gets none, and calibration."""

import numpy as np
import pytest

from celldial.inference import label_classifier
from celldial.inference.label_classifier import LabelClassifier, calibration_error, fit_label_classifier

N_LATENT = 4
Array = np.ndarray


def simulate(
    n_cells: tuple[int, ...] = (300, 300, 100), distance: float = 6.0, shift: float = 0.0, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Return coordinates and types of cells of normally distributed types, and batches that differ by a shift."""
    random = np.random.default_rng(seed)
    mean_kz = distance * np.eye(max(len(n_cells), N_LATENT))[: len(n_cells), :N_LATENT]
    type_c = random.permutation(np.repeat(np.arange(len(n_cells)), n_cells))
    batch_c = np.where(random.random(len(type_c)) < 0.5, "a", "b").astype(object)
    z_cz = mean_kz[type_c] + random.normal(size=(len(type_c), N_LATENT))
    z_cz[batch_c == "b", -1] += shift
    return z_cz, type_c, batch_c


def fit(z_cz: Array, label_c: Array, batch_c: Array | None = None, n_labels: int | None = None) -> LabelClassifier:
    """Hold out every fifth labeled cell."""
    held_out_c = (label_c >= 0) & (np.arange(len(label_c)) % 5 == 0)
    n_labels = int(label_c.max()) + 1 if n_labels is None else n_labels
    return fit_label_classifier(z_cz, label_c, held_out_c, n_labels, batch_c, seed=0)


def test_cells_between_types_are_uncertain() -> None:
    z_cz, type_c, _ = simulate((200, 200), distance=8)
    classifier = fit(z_cz, type_c)
    found = classifier.classify(np.array([[8.0, 0, 0, 0], [0, 8, 0, 0], [4, 4, 0, 0]]))
    assert found.probability_ck[0, 0] > 0.95
    assert found.probability_ck[1, 1] > 0.95
    assert 0.2 < found.probability_ck[2, 0] < 0.8
    np.testing.assert_allclose(found.probability_ck.sum(1), 1)
    assert found.neighbor_c[:2].tolist() == [0, 1]


@pytest.mark.parametrize("distance", [2.0, 3.0])
def test_probabilities_are_calibrated(distance: float) -> None:
    z_cz, type_c, _ = simulate((800, 800, 400), distance)
    label_c = np.where(np.arange(len(type_c)) < 1000, type_c, -1)
    classifier = fit(z_cz, label_c)
    probability_ck = classifier.classify(z_cz).probability_ck[1000:]
    assert calibration_error(probability_ck, type_c[1000:]) < 0.05
    assert classifier.calibration_error is not None
    assert classifier.calibration_error < 0.1
    assert classifier.n_held_out == 200


@pytest.mark.parametrize("n_labeled", [60, 350])
def test_a_type_without_a_label_is_far_and_the_others_are_not(n_labeled: int) -> None:
    z_cz, type_c, _ = simulate((300, 300, 100))
    label_c = np.where((np.arange(len(type_c)) < n_labeled) & (type_c < 2), type_c, -1)
    distance_c = fit(z_cz, label_c, n_labels=2).classify(z_cz).distance_c
    assert (distance_c[type_c == 2] > 1).mean() > 0.9
    assert (distance_c[type_c < 2] > 1).mean() < 0.1


def test_a_new_type_among_other_cells_is_far() -> None:
    z_cz, type_c, _ = simulate((400, 400))
    classifier = fit(z_cz, np.where(np.arange(800) < 400, type_c, -1))
    new_cz, new_type_c, _ = simulate((200, 200, 100), seed=1)
    distance_c = classifier.classify(new_cz).distance_c
    assert (distance_c[new_type_c == 2] > 1).mean() > 0.9
    assert (distance_c[new_type_c < 2] > 1).mean() < 0.1
    assert classifier.classify(new_cz[new_type_c == 2][:1]).distance_c[0] > 1  # a single cell


def test_a_batch_without_labels_may_be_shifted() -> None:
    z_cz, type_c, batch_c = simulate((400, 400, 100), distance=10, shift=1.5)
    label_c = np.where((batch_c == "a") & (type_c < 2), type_c, -1)
    classifier = fit(z_cz, label_c, batch_c, n_labels=2)
    assert classifier.batch_scale["b"] > 1.1
    found = classifier.classify(z_cz, batch_c)
    is_known_b, is_new_b = (batch_c == "b") & (type_c < 2), (batch_c == "b") & (type_c == 2)
    assert (found.probability_ck.argmax(1) == type_c)[is_known_b].mean() > 0.98
    assert (found.distance_c[is_known_b] > 1).mean() < 0.15
    assert (found.distance_c[is_known_b] > 1).mean() < (classifier.classify(z_cz).distance_c[is_known_b] > 1).mean()
    assert (found.distance_c[is_new_b] > 1).mean() > 0.8


def test_the_label_of_a_cell_itself_is_not_used() -> None:
    z_cz, type_c, _ = simulate((100, 100))
    wrong_c = type_c.copy()
    wrong_c[7] = 1 - wrong_c[7]
    found = fit(z_cz, wrong_c).classify(z_cz)
    assert found.probability_ck[7, type_c[7]] > 0.9


def test_a_rare_label_can_win() -> None:
    z_cz, type_c, _ = simulate((300, 300, 30), distance=8)
    rare = np.flatnonzero(type_c == 2)[:2]  # fewer than the nearest cells that vote
    label_c = np.where(type_c < 2, type_c, -1)
    label_c[rare] = 2
    found_c = fit(z_cz, label_c).classify(z_cz).probability_ck.argmax(1)
    assert (found_c[type_c == 2] == 2).mean() > 0.9


def test_without_held_out_labels_nothing_is_calibrated() -> None:
    z_cz, type_c, _ = simulate((20, 20))
    label_c = np.full(40, -1)
    for label in (0, 1):
        label_c[np.flatnonzero(type_c == label)[0]] = label
    classifier = fit_label_classifier(z_cz, label_c, np.zeros(40, dtype=bool), 2, None, 0)
    found = classifier.classify(z_cz)
    assert (found.probability_ck.argmax(1) == type_c).mean() > 0.9
    assert (found.distance_c == 0).all()
    assert classifier.calibration_error is None


def test_a_dict_keeps_everything() -> None:
    z_cz, type_c, batch_c = simulate((60, 60), shift=1.0)
    classifier = fit(z_cz, np.where(batch_c == "a", type_c, -1), batch_c)
    again = LabelClassifier.from_dict(classifier.to_dict())
    for mine, expected in zip(again.classify(z_cz, batch_c), classifier.classify(z_cz, batch_c), strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert again.to_dict() == classifier.to_dict()


def test_labeled_cells_are_sampled_per_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_classifier, "MAX_CELLS_PER_LABEL", 40)
    z_cz, type_c, _ = simulate((300, 100, 10))
    classifier = fit(z_cz, type_c)
    assert np.bincount(classifier.label_r).tolist() == [40, 40, 10]
    assert classifier.n_k.tolist() == [300, 100, 10]
    assert (classifier.classify(z_cz).probability_ck.argmax(1) == type_c).mean() > 0.95


def test_calibration_error_of_known_cases() -> None:
    probability_ck = np.tile([0.8, 0.2], (100, 1))
    assert calibration_error(probability_ck, np.arange(100) % 5 == 0) == pytest.approx(0)
    assert calibration_error(probability_ck, np.zeros(100, dtype=int)) == pytest.approx(0.2)


def test_a_calibration_error_needs_cells() -> None:
    z_cz, type_c, _ = simulate((60, 60))
    classifier = fit(z_cz, type_c)
    assert (classifier.calibration_error, classifier.n_held_out) == (None, 24)
