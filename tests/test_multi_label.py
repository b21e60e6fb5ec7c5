import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from supcon_tf.evaluation import metrics, multi_label


def random_labels(count=80, num_classes=5, seed=0):
    """Scores that favor the labels, and labels without a positive of class 2."""
    rng = np.random.default_rng(seed)
    labels = rng.random((count, num_classes)) < 0.3
    labels[:, 2] = False
    return 2 * rng.normal(size=labels.shape) + 2 * labels - 1, labels


def f1_loop(predicted, labels):
    hits = sum(p and y for p, y in zip(predicted, labels, strict=True))
    wrong = sum(p != y for p, y in zip(predicted, labels, strict=True))
    return 2 * hits / (2 * hits + wrong) if hits or wrong else 0.0


def average_precision_loop(scores, labels):
    """The mean over the positives of the precision at their rank (no ties)."""
    precisions, hits = [], 0
    for rank, index in enumerate(np.argsort(-scores), start=1):
        if labels[index]:
            hits += 1
            precisions.append(hits / rank)
    return np.mean(precisions)


def test_figures_equal_the_loops_and_scikit_learn():
    logits, labels = random_labels()
    names = ["a", "b", "never", "d", "e"]
    found = multi_label.multi_label_metrics(logits, labels, from_logits=True, class_names=names)
    kept = [0, 1, 3, 4]
    expected = {names[c]: average_precision_loop(logits[:, c], labels[:, c]) for c in kept}
    assert found["average_precision"] == pytest.approx(expected)
    assert found["mean_average_precision"] == pytest.approx(np.mean(list(expected.values())))
    assert found["mean_average_precision"] == pytest.approx(
        average_precision_score(labels[:, kept], logits[:, kept], average="macro")
    )
    predicted = logits >= 0
    scores = [f1_loop(predicted[:, c], labels[:, c]) for c in kept]
    assert found["macro_f1"] == pytest.approx(np.mean(scores))
    assert found["micro_f1"] == pytest.approx(f1_loop(predicted.ravel(), labels.ravel()))
    assert found["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert found["classes_without_positives"] == ["never"]
    assert found["num_examples"] == 80
    assert 0.3 < found["macro_f1"] < 1.0


def test_the_mean_is_that_of_the_other_module():
    logits, labels = random_labels()
    found = multi_label.multi_label_metrics(logits, labels, from_logits=True)
    expected = metrics.mean_average_precision(logits, labels)
    assert found["mean_average_precision"] == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_logits_and_their_probabilities_give_the_same(threshold):
    logits, labels = random_labels()
    probabilities = 1 / (1 + np.exp(-logits))
    options = {"threshold": threshold}
    from_logits = multi_label.multi_label_metrics(logits, labels, from_logits=True, **options)
    assert multi_label.multi_label_metrics(probabilities, labels, **options) == from_logits


def test_large_logits_are_ranked_and_not_rounded_to_ties():
    logits, labels = np.array([[50.0], [60.0], [70.0]]), np.array([[0], [0], [1]])
    found = multi_label.multi_label_metrics(logits, labels, from_logits=True)
    assert found["mean_average_precision"] == 1.0


@pytest.mark.filterwarnings("error")
def test_predicting_nothing_has_an_f1_of_zero_without_a_warning():
    found = multi_label.multi_label_metrics(np.zeros([4, 2]), np.eye(4)[:, :2])
    assert found["micro_f1"] == found["macro_f1"] == 0.0


def test_regression_of_known_predictions():
    """Errors 1, 0, 1 around targets 0, 2, 4: the mean error is 2/3, R2 = 1 - 2/8."""
    found = multi_label.regression_metrics(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 4.0]))
    assert found == pytest.approx({"mean_absolute_error": 2 / 3, "r2": 0.75, "num_examples": 3})
    targets = np.array([[0.0, 5.0], [2.0, 7.0]])
    assert multi_label.regression_metrics(targets, targets)["r2"] == 1.0


@pytest.mark.parametrize("num_targets", [None, 2])
@pytest.mark.parametrize("num_neighbors", [1, 7, 500])
def test_neighbor_regression_equals_scikit_learn(num_targets, num_neighbors):
    from sklearn.neighbors import KNeighborsRegressor

    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 4)), rng.normal(size=(30, 4))
    targets = rng.normal(size=[60, *([num_targets] if num_targets else [])])
    regressor = KNeighborsRegressor(
        n_neighbors=min(num_neighbors, 60),
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp((1.0 - distances) / 0.07),
    )
    found = multi_label.knn_regression(train, targets, test, num_neighbors=num_neighbors)
    np.testing.assert_allclose(found, regressor.fit(train, targets).predict(test), atol=1e-4)


def test_inputs_that_mean_nothing_are_refused():
    ones = np.ones([2, 3])
    for call, message in [
        (lambda: multi_label.multi_label_metrics(ones, ones[:, :2]), "one shape"),
        (lambda: multi_label.multi_label_metrics(ones[0], ones[0]), "one shape"),
        (lambda: multi_label.multi_label_metrics(ones, 0 * ones), "No label is set"),
        (lambda: multi_label.multi_label_metrics(np.nan * ones, ones), "2 of 2"),
        (lambda: multi_label.multi_label_metrics(ones, ones, class_names="aab"), "class names"),
        (
            lambda: multi_label.multi_label_metrics(ones, ones, threshold=1, from_logits=True),
            "between 0 and 1",
        ),
        (lambda: multi_label.regression_metrics([1.0], [1.0]), "two examples"),
        (lambda: multi_label.regression_metrics([1.0, 2.0], [3.0, 3.0]), "differ"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
