import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from histolight.errors import HistolightError, RequestError
from histolight.statistics.metrics import best_threshold, classification_metrics


def simulated(tiles: int, seed: int = 0, grid: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.random(tiles) < 0.4
    logits = rng.normal(size=tiles) * 2 + 2 * labels - 1.5
    if grid:
        logits = np.round(logits / grid) * grid
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels, dtype=torch.long)


def naive_ece(scores: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (scores >= low) & ((scores < high) | (number == 14))
        if inside.any():
            total += inside.sum() * abs(scores[inside].mean() - labels[inside].mean())
    return total / len(scores)


@pytest.mark.parametrize("grid", [None, 0.5])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_figures_equal_scikit_learn(grid, threshold):
    logits, labels = simulated(700, grid=grid)
    scores, truth = torch.sigmoid(logits).numpy(), labels.numpy()
    called = scores > threshold
    false, true, _ = reference.roc_curve(truth, scores, drop_intermediate=False)
    expected = {
        "auroc": reference.roc_auc_score(truth, scores),
        "average_precision": reference.average_precision_score(truth, scores),
        "accuracy": reference.accuracy_score(truth, called),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, called),
        "f1": reference.f1_score(truth, called),
        "sensitivity": reference.recall_score(truth, called),
        "specificity": reference.recall_score(truth, called, pos_label=0),
        "sensitivity_at_specificity": true[false <= 0.05].max(),
        "nll": reference.log_loss(truth, scores.astype(np.float64)),
        "ece": naive_ece(scores, truth),
    }
    figures = classification_metrics(logits, labels, threshold)
    assert list(figures) == list(expected)
    assert figures == pytest.approx(expected, abs=1e-6)


def test_logits_inside_the_unit_interval_are_still_logits():
    logits = torch.tensor([0.1, 0.2, 0.8, 0.9])
    labels = torch.tensor([0, 0, 1, 1])
    figures = classification_metrics(logits, labels)
    assert figures["specificity"] == 0.0  # sigmoid(0.1) is above 0.5
    assert figures["nll"] == pytest.approx(np.mean([0.744397, 0.798139, 0.371101, 0.341154]), abs=1e-5)


def test_a_score_of_exactly_the_threshold_is_negative():
    figures = classification_metrics(torch.tensor([0.0, 0.0]), torch.tensor([0, 1]))
    assert (figures["specificity"], figures["sensitivity"]) == (1.0, 0.0)


def test_a_score_of_one_shares_the_last_bin():
    # sigmoid(40) is 1 in float32, sigmoid(3) is 0.9526: one bin of two tiles, mean score 0.9763, half of them positive.
    # In bins of their own they would give (1 + 1 - 0.9526) / 2.
    figures = classification_metrics(torch.tensor([40.0, 3.0]), torch.tensor([0, 1]))
    assert figures["ece"] == pytest.approx(0.976287 - 0.5, abs=1e-5)


def test_extreme_logits_keep_a_finite_loss():
    figures = classification_metrics(torch.tensor([200.0, -200.0]), torch.tensor([0, 1]))
    assert figures["nll"] == pytest.approx(200)


def test_half_precision_logits_and_boolean_labels():
    logits, labels = simulated(200)
    halved = logits.bfloat16()
    assert classification_metrics(halved, labels.bool()) == classification_metrics(halved.float(), labels)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "words"),
    [
        ([0.1, 0.2], [1, 1], RequestError, "one and the same label"),
        ([0.1, 0.2], [0, 0], RequestError, "one and the same label"),
        ([0.1, float("nan")], [0, 1], HistolightError, "1 of 2 scores are NaN"),
        ([0.1, float("inf")], [0, 1], HistolightError, "NaN or infinite"),
        ([0.1, 0.2], [0, 2], RequestError, "labels must be 0 or 1"),
        ([0.1, 0.2, 0.3], [0, 1], RequestError, "shape"),
        ([], [], RequestError, "one and the same label"),
    ],
)
@pytest.mark.parametrize("function", [classification_metrics, best_threshold])
def test_bad_input_is_named(function, logits, labels, error, words):
    with pytest.raises(error, match=words):
        function(torch.tensor(logits), torch.tensor(labels))


@pytest.mark.parametrize("grid", [None, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_threshold_is_the_best_of_all(seed, grid):
    logits, labels = simulated(80, seed, grid)
    scores = torch.sigmoid(logits)
    threshold = best_threshold(scores, labels)

    def quality(at: float) -> float:
        return reference.balanced_accuracy_score(labels.numpy(), scores.numpy() > np.float32(at))

    distinct = np.unique(scores.numpy())
    candidates = (distinct[1:] + distinct[:-1]) / 2
    qualities = np.array([quality(at) for at in candidates])
    assert quality(threshold) == pytest.approx(qualities.max())
    nearest = np.abs(candidates[np.isclose(qualities, qualities.max())] - 0.5).min()
    assert abs(threshold - 0.5) == pytest.approx(nearest)


@pytest.mark.parametrize(
    ("scores", "threshold"), [([0.125, 0.375, 0.75, 1.0], 0.25), ([0.0, 0.25, 0.625, 0.875], 0.75)]
)
def test_of_equally_good_thresholds_the_one_nearest_to_one_half_is_taken(scores, threshold):
    assert best_threshold(torch.tensor(scores), torch.tensor([0, 1, 0, 1])) == threshold


def test_threshold_separates_neighbouring_float32_scores():
    low = np.float32(0.7)
    scores = torch.tensor([low, np.nextafter(low, np.float32(1))])
    threshold = best_threshold(scores, torch.tensor([0, 1]))
    assert (scores > threshold).tolist() == [False, True]


def test_threshold_of_equal_scores_is_one_half():
    assert best_threshold(torch.tensor([0.2, 0.2]), torch.tensor([0, 1])) == 0.5
