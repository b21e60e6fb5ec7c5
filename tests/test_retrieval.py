import pathlib

import numpy as np
import pytest

from supcon_tf.evaluation import metrics, retrieval

FIGURES = ("precision_at_1", "r_precision", "map_at_r")


@pytest.fixture(scope="module")
def stored():
    return dict(np.load(pathlib.Path(__file__).parent / "helpers/retrieval_numbers.npz"))


def cosine(first, second):
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return np.sum(first * second) / np.sqrt(np.sum(first**2) * np.sum(second**2))


def ranking_loop(query, reference, own=None):
    """Indices of the reference examples, most similar first, of equal ones the lower index."""
    others = [i for i in range(len(reference)) if i != own]
    return sorted(others, key=lambda i: (-cosine(query, reference[i]), i))


def shares_class(first, second):
    return bool(np.any(np.logical_and(first, second))) if np.ndim(first) else first == second


def retrieval_loop(embeddings, labels, reference=None, reference_labels=None, ks=(1, 5)):
    """The definitions, one query and one rank after the other."""
    rows, is_self = [], reference is None
    reference, others = (embeddings, labels) if is_self else (reference, reference_labels)
    for index, (query, label) in enumerate(zip(embeddings, labels, strict=True)):
        ranking = ranking_loop(query, reference, own=index if is_self else None)
        hits = [shares_class(label, others[i]) for i in ranking]
        num_relevant = sum(hits)
        if num_relevant == 0:
            continue
        average = 0.0
        for rank in range(1, num_relevant + 1):
            if hits[rank - 1]:
                average += sum(hits[:rank]) / rank
        row = [hits[0], sum(hits[:num_relevant]) / num_relevant, average / num_relevant]
        rows.append(row + [any(hits[:k]) for k in ks])
    return np.mean(rows, axis=0), len(rows)


def clusters(count=90, num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=count)
    centers = np.random.default_rng(99).normal(size=(num_classes, 6))
    return (centers[labels] + rng.normal(size=(count, 6))).astype(np.float32), labels


def test_stored_numbers_of_pytorch_metric_learning(stored):
    itself = retrieval.retrieval_metrics(stored["embeddings"], stored["labels"])
    names = ("embeddings", "labels", "reference", "reference_labels")
    apart = retrieval.retrieval_metrics(*(stored[name] for name in names))
    several = retrieval.retrieval_metrics(stored["multi_hot_embeddings"], stored["multi_hot"])
    cases = {
        "against_itself": itself,
        "against_reference": apart,
        "multi_hot_against_itself": several,
    }
    for name, found in cases.items():
        np.testing.assert_allclose([found[x] for x in FIGURES], stored[name], rtol=1e-12)
        assert found["recall_at_1"] == found["precision_at_1"]
    assert itself["num_queries_left_out"] == 1
    assert apart["num_queries_left_out"] == np.sum(stored["labels"] == 3)
    empty = np.sum(~stored["multi_hot"].any(axis=1))
    assert empty > 0
    assert several["num_queries_left_out"] >= 1 + empty


@pytest.mark.parametrize("block_size", [1, 1_000, None])
@pytest.mark.parametrize("kind", ["class", "multi_hot"])
@pytest.mark.parametrize("is_self", [True, False])
def test_retrieval_equals_the_loop_in_blocks_of_any_size(monkeypatch, block_size, kind, is_self):
    monkeypatch.setattr(retrieval, "BLOCK_SIZE", block_size or retrieval.BLOCK_SIZE)
    sets = [*clusters(40, seed=1), *([] if is_self else clusters(50, seed=2))]
    if kind == "multi_hot":
        rng = np.random.default_rng(3)
        for i in range(1, len(sets), 2):
            own, chance = np.eye(5)[sets[i]] > 0, rng.random((len(sets[i]), 5))
            sets[i] = (own & (chance < 0.8)) | (chance < 0.1)
    expected, num_queries = retrieval_loop(*sets)
    found = retrieval.retrieval_metrics(*sets, recall_ks=(1, 5))
    values = [found[name] for name in (*FIGURES, "recall_at_1", "recall_at_5")]
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert found["num_queries"] == num_queries
    assert found["num_queries"] + found["num_queries_left_out"] == 40
    assert 0.2 < expected[2] < expected[1] < 1.0


def test_values_per_query_belong_to_the_queries_that_are_named():
    """Two classes that are pure and one single example between them."""
    embeddings = np.array([[1, 0], [0.5, 0.5], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    labels = np.array([0, 7, 0, 1, 1])
    found = retrieval.retrieve(embeddings, labels, recall_ks=(1, 50))
    np.testing.assert_array_equal(found.queries, [0, 2, 3, 4])
    assert found.num_left_out == 1
    for values in (found.precision_at_1, found.map_at_r, found.recall_at[50]):
        np.testing.assert_array_equal(values, np.ones(4))


def test_map_at_r_of_a_known_ranking():
    """R = 3, relevant at ranks 1 and 3: (1/1 + 2/3) / 3; R-precision 2/3."""
    angles = np.deg2rad([0, 10, 20, 30, 80])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 1, 0, 0])
    found = retrieval.retrieve(vectors[:1], np.array([0]), vectors[1:], labels[[0, 1, 2, 3]])
    # Ranks: 1 (10 degrees, class 0), 2 (20, class 1), 3 (30, class 0), 4 (80, class 0).
    assert found.map_at_r[0] == pytest.approx((1 + 2 / 3) / 3)
    assert found.r_precision[0] == pytest.approx(2 / 3)


def test_nearest_equals_the_loop_and_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    queries, _ = clusters(30, seed=1)
    reference, _ = clusters(50, seed=2)
    indices, similarities = retrieval.nearest(queries, 5 * reference, 7)
    expected = [ranking_loop(query, reference)[:7] for query in queries]
    np.testing.assert_array_equal(indices, expected)
    search = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(reference)
    distances, found = search.kneighbors(queries)
    np.testing.assert_array_equal(indices, found)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)


def test_nearest_among_themselves_leaves_each_example_out(monkeypatch):
    embeddings, _ = clusters(30)
    whole = retrieval.nearest(embeddings, None, 29)
    expected = [ranking_loop(x, embeddings, own=i) for i, x in enumerate(embeddings)]
    np.testing.assert_array_equal(whole[0], expected)
    monkeypatch.setattr(retrieval, "BLOCK_SIZE", 100)
    np.testing.assert_array_equal(retrieval.nearest(embeddings, None, 29)[0], expected)


def test_equal_neighbors_come_in_the_order_of_their_indices():
    same = np.tile([[1.0, 0.0]], [6, 1])
    indices, similarities = retrieval.nearest(same, None, 2)
    np.testing.assert_array_equal(indices, [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal(similarities, np.ones([6, 2]))
    np.testing.assert_array_equal(retrieval.nearest(same[:1], same, 6)[0], [np.arange(6)])


@pytest.mark.parametrize("k,among_themselves", [(0, True), (4, True), (5, False)])
def test_a_number_of_neighbors_that_do_not_exist_is_refused(k, among_themselves):
    embeddings = np.eye(4)
    with pytest.raises(ValueError, match="k between 1 and"):
        retrieval.nearest(embeddings, None if among_themselves else embeddings, k)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_vote_is_that_of_the_nearest_neighbor_accuracy(temperature):
    train, labels = clusters(60, seed=1)
    test, test_labels = clusters(40, seed=2)
    indices, similarities = retrieval.nearest(test, train, 9)
    votes = retrieval.neighbor_vote(
        similarities, np.eye(5)[labels[indices]], temperature=temperature
    )
    np.testing.assert_allclose(votes.sum(axis=1), 1.0)
    expected = metrics.knn_accuracy(
        train, labels, test, test_labels, num_neighbors=9, temperature=temperature
    )
    assert np.mean(votes.argmax(axis=1) == test_labels) == pytest.approx(expected)
    assert 0.3 < expected < 1.0


def test_classes_are_selected_by_number_or_by_any_of_several_labels():
    labels = np.array([0, 1, 2, 1])
    np.testing.assert_array_equal(retrieval.select_classes(labels, [1, 2]), [0, 1, 1, 1])
    several = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(retrieval.select_classes(several, [1]), [0, 1, 0])
    for known in (labels, several):
        with pytest.raises(ValueError, match="5"):
            retrieval.select_classes(known, [0, 5])


def test_sets_that_mean_nothing_are_refused():
    eye, labels = np.eye(3), np.arange(3)
    broken = np.where(eye > 0, np.nan, 0)
    for sets, message in [
        ((eye, labels), "two examples of one class"),
        ((broken, labels), "3 of 3 examples are not finite"),
        ((eye, labels, np.eye(4), np.arange(4)), "3 features"),
        ((eye, labels[:2]), "for 3 embeddings"),
        ((eye, labels, eye), "both of reference"),
        ((eye, labels, eye, eye), "do not fit"),
        ((eye[0], labels), "[N, D]".replace("[", r"\[")),
    ]:
        with pytest.raises(ValueError, match=message):
            retrieval.retrieve(*sets)
