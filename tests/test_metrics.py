import numpy as np
import pytest

from supcon_tf.evaluation import metrics


def top_k_loop(logits, labels, k):
    """How often fewer than k other classes have a logit at least as large as the label's."""
    hits = 0
    for row, label in zip(logits, labels, strict=True):
        rivals = sum(1 for c, value in enumerate(row) if c != label and value >= row[label])
        hits += rivals < k
    return hits / len(labels)


def knn_loop(train, train_labels, test, test_labels, num_neighbors, temperature):
    """Wu et al. 2018, section 3.4, one test example after the other."""
    hits = 0
    for vector, label in zip(test, test_labels, strict=True):
        cosines = []
        for other in train:
            norms = np.sqrt(np.sum(vector**2)) * np.sqrt(np.sum(other**2))
            cosines.append(np.sum(vector * other) / norms)
        nearest = sorted(range(len(train)), key=lambda i: -cosines[i])[:num_neighbors]
        votes = {}
        for i in nearest:
            vote = np.exp(cosines[i] / temperature)
            votes[train_labels[i]] = votes.get(train_labels[i], 0.0) + vote
        hits += max(votes, key=votes.get) == label
    return hits / len(test)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_equals_the_loop(k):
    rng = np.random.default_rng(k)
    logits, labels = rng.normal(size=(200, 7)), rng.integers(7, size=200)
    assert metrics.top_k_accuracy(logits, labels, k) == pytest.approx(top_k_loop(logits, labels, k))
    coarse = np.round(logits)  # many ties
    assert metrics.top_k_accuracy(coarse, labels, k) == pytest.approx(top_k_loop(coarse, labels, k))
    assert top_k_loop(coarse, labels, k) < top_k_loop(logits, labels, k)


def test_top_k_of_known_logits():
    logits = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    assert metrics.top_k_accuracy(logits, [0, 0, 0], k=1) == pytest.approx(1 / 3)
    assert metrics.top_k_accuracy(logits, [0, 0, 0], k=2) == pytest.approx(2 / 3)


def test_a_tie_counts_against_the_example():
    logits = np.array([[1.0, 1.0, 0.0]])
    for label in (0, 1):
        assert metrics.top_k_accuracy(logits, [label], k=1) == 0.0
        assert metrics.top_k_accuracy(logits, [label], k=2) == 1.0
    assert metrics.top_k_accuracy(np.zeros((4, 10)), [0, 1, 2, 3], k=5) == 0.0


def test_a_broken_logit_is_no_hit():
    logits = np.array([[np.nan, np.nan, np.nan], [0.0, 1.0, np.nan]])
    assert metrics.top_k_accuracy(logits, [0, 2], k=1) == 0.0


@pytest.mark.parametrize("k", [3, 5])
def test_top_k_of_at_most_k_classes_is_one(k):
    logits = np.random.default_rng(0).normal(size=(10, 3))
    assert metrics.top_k_accuracy(logits, np.arange(10) % 3, k) == 1.0
    assert metrics.top_k_accuracy(logits, np.arange(10) % 3, k=2) < 1.0


@pytest.mark.parametrize("num_neighbors,temperature", [(1, 0.07), (5, 0.07), (20, 0.5)])
def test_knn_equals_the_loop(num_neighbors, temperature):
    rng = np.random.default_rng(num_neighbors)
    centers = rng.normal(size=(4, 6))
    train_labels, test_labels = rng.integers(4, size=60), rng.integers(4, size=40)
    train = centers[train_labels] + 0.8 * rng.normal(size=(60, 6))
    test = centers[test_labels] + 0.8 * rng.normal(size=(40, 6))
    options = {"num_neighbors": num_neighbors, "temperature": temperature}
    expected = knn_loop(train, train_labels, test, test_labels, **options)
    result = metrics.knn_accuracy(train, train_labels, test, test_labels, **options)
    assert result == pytest.approx(expected)
    assert 0.4 < expected < 1.0


def test_a_near_neighbor_outvotes_two_far_ones():
    train = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    test, labels = np.array([[1.0, 0.1]]), np.array([0, 1, 1])
    assert metrics.knn_accuracy(train, labels, test, [0], num_neighbors=3) == 1.0
    assert metrics.knn_accuracy(train, labels, test, [0], num_neighbors=3, temperature=100) == 0.0


def test_knn_does_not_depend_on_the_length_of_an_embedding():
    rng = np.random.default_rng(0)
    train, test, labels = rng.normal(size=(30, 4)), rng.normal(size=(20, 4)), np.arange(30) % 3
    expected = metrics.knn_accuracy(train, labels, test, labels[:20], num_neighbors=5)
    scaled = train * rng.uniform(0.1, 10, size=(30, 1))
    assert metrics.knn_accuracy(scaled, labels, test, labels[:20], num_neighbors=5) == expected


def test_knn_takes_all_neighbors_of_a_small_training_set():
    train, labels = np.eye(3), [0, 1, 2]
    assert metrics.knn_accuracy(train, labels, train, labels, num_neighbors=20) == 1.0


def ece_loop(logits, labels, num_bins):
    """Guo et al. 2017, Eq. 3, one bin after the other."""
    total = 0.0
    for low in range(num_bins):
        hits, confidences = [], []
        for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
            exponentials = np.exp(row - row.max())
            probabilities = exponentials / exponentials.sum()
            if low / num_bins < probabilities.max() <= (low + 1) / num_bins:
                hits.append(probabilities.argmax() == label)
                confidences.append(probabilities.max())
        if hits:
            total += len(hits) * abs(np.mean(hits) - np.mean(confidences))
    return total / len(labels)


def random_predictions(num_classes=7, count=300, seed=0):
    """Logits [M, C] that favor the label now and then."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=count)
    return 2 * rng.normal(size=(count, num_classes)) + 2 * np.eye(num_classes)[labels], labels


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_equals_the_loop(num_bins):
    logits, labels = random_predictions()
    result = metrics.expected_calibration_error(logits, labels, num_bins=num_bins)
    assert result == pytest.approx(ece_loop(logits, labels, num_bins))
    assert result > 0.01


def test_calibration_error_of_known_predictions():
    """Always sure and right half of the time: 1/2; a guess among C equal classes: 0."""
    sure = 100.0 * np.eye(2)[[0, 0, 0, 0]]
    assert metrics.expected_calibration_error(sure, np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    equal = np.zeros([5, 5])
    assert metrics.expected_calibration_error(equal, np.arange(5)) == pytest.approx(0.0)


def test_likelihood_equals_the_definition_and_scikit_learn():
    from sklearn.metrics import log_loss

    logits, labels = random_predictions()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.mean([np.log(p[label]) for p, label in zip(probabilities, labels, strict=True)])
    result = metrics.negative_log_likelihood(logits, labels)
    assert result == pytest.approx(expected)
    assert result == pytest.approx(log_loss(labels, probabilities))


def test_a_sure_mistake_costs_all_of_its_logit():
    logits = np.array([[0.0, 1_000.0]], np.float32)
    assert metrics.negative_log_likelihood(logits, [0]) == pytest.approx(1_000.0)
    assert metrics.negative_log_likelihood(logits, [1]) == pytest.approx(0.0)


def test_confusion_and_per_class_accuracy_of_known_predictions():
    """Class 0: 3 of 4 right, class 1: 0 of 1, class 2: does not occur."""
    logits = np.eye(3)[[0, 0, 0, 2, 0]]
    labels = np.array([0, 0, 0, 0, 1])
    expected = [[3, 0, 1], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(metrics.confusion_matrix(logits, labels), expected)
    assert metrics.mean_per_class_accuracy(logits, labels) == pytest.approx(3 / 8)


def average_precision_loop(scores, labels):
    """The mean over the positives of the precision at their rank (no ties)."""
    order = np.argsort(-scores)
    precisions, hits = [], 0
    for rank, index in enumerate(order, start=1):
        if labels[index]:
            hits += 1
            precisions.append(hits / rank)
    return np.mean(precisions)


def test_mean_average_precision_equals_the_loop_over_classes_that_occur():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 4)), (rng.random((50, 4)) < 0.3).astype(np.float32)
    labels[:, 2] = 0
    expected = np.mean([average_precision_loop(scores[:, c], labels[:, c]) for c in (0, 1, 3)])
    assert metrics.mean_average_precision(scores, labels) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least one label"):
        metrics.mean_average_precision(scores, np.zeros_like(labels))


def test_all_figures_come_together():
    logits, labels = random_predictions()
    figures = metrics.classification_metrics(logits, labels)
    assert figures["num_examples"] == 300
    assert figures["top_1"] == metrics.top_k_accuracy(logits, labels)
    assert figures["top_1"] == pytest.approx(np.trace(figures["confusion_matrix"]) / 300)
    assert figures["top_1"] < figures["top_5"] < 1.0
    few = np.minimum(labels, 4)
    assert "top_5" not in metrics.classification_metrics(logits[:, :5], few)  # It would be 1.
    assert "top_5" in metrics.classification_metrics(logits[:, :6], few)
    several = np.eye(7)[labels]
    figures = metrics.classification_metrics(logits, several)
    assert set(figures) == {"mean_average_precision", "num_examples"}


@pytest.mark.parametrize(
    "logits,labels,message",
    [
        (np.zeros([2, 3]), [0, 3], "from 0 to 3: .*3 classes.*from 0 to 2"),
        (np.zeros([2, 3]), [-1, 0], "from -1 to 0"),
        (np.zeros([2, 3]), np.zeros([2, 4]), r"shape \(2, 4\): .*\(2, 3\)"),
        (np.array([[np.nan, 0], [0, 1]]), [0, 1], "1 of 2 examples are not finite"),
    ],
)
def test_predictions_that_mean_nothing_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.classification_metrics(logits, labels)


def class_clusters(noise, count=120, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    centers = np.random.default_rng(99).normal(size=(num_classes, 6))
    return centers[labels] + noise * rng.normal(size=(count, 6)), labels


def test_linear_probe_separates_what_is_separable_and_guesses_noise():
    train, test = class_clusters(0.05, seed=1), class_clusters(0.05, seed=2)
    assert metrics.linear_probe_accuracy(*train, *test) == 1.0
    train, test = class_clusters(1e3, seed=1), class_clusters(1e3, seed=2)
    assert metrics.linear_probe_accuracy(*train, *test) < 0.5


def test_linear_probe_is_no_nearest_neighbor():
    """A class between two halves of the other: neighbors find it, no line does."""
    values = np.linspace(-1, 1, 90)[:, None]
    embeddings, labels = np.hstack([values, np.ones_like(values)]), (np.abs(values[:, 0]) < 0.4) * 1
    sets = (embeddings, labels, embeddings, labels)
    assert metrics.knn_accuracy(*sets, num_neighbors=3) > 0.95
    assert metrics.linear_probe_accuracy(*sets) < 0.7


@pytest.mark.filterwarnings("error")
def test_linear_probe_ranks_several_labels():
    train, labels = class_clusters(0.05, seed=1)
    test, test_labels = class_clusters(0.05, seed=2)
    several = np.eye(5)[labels] + np.eye(5)[(labels + 1) % 4]  # The fifth class never occurs.
    test_several = np.eye(5)[test_labels] + np.eye(5)[(test_labels + 1) % 4]
    result = metrics.embedding_metrics(train, several, test, test_several)
    assert result["linear_probe_mean_average_precision"] > 0.99
    wrong = metrics.linear_probe_average_precision(train, several, test, test_several[::-1])
    assert wrong < 0.8
