import numpy as np
import pytest

from supcon_tf import metrics


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
    centres = rng.normal(size=(4, 6))
    train_labels, test_labels = rng.integers(4, size=60), rng.integers(4, size=40)
    train = centres[train_labels] + 0.8 * rng.normal(size=(60, 6))
    test = centres[test_labels] + 0.8 * rng.normal(size=(40, 6))
    options = {"num_neighbors": num_neighbors, "temperature": temperature}
    expected = knn_loop(train, train_labels, test, test_labels, **options)
    result = metrics.knn_accuracy(train, train_labels, test, test_labels, **options)
    assert result == pytest.approx(expected)
    assert 0.4 < expected < 1.0


def test_a_near_neighbour_outvotes_two_far_ones():
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


def test_knn_takes_all_neighbours_of_a_small_training_set():
    train, labels = np.eye(3), [0, 1, 2]
    assert metrics.knn_accuracy(train, labels, train, labels, num_neighbors=20) == 1.0
