import numpy as np
import pytest

from supcon_tf.evaluation import geometry, retrieval


def unit(vectors):
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True))


def pairs(embeddings):
    """Every pair i < j of unit vectors, in float64."""
    vectors = unit(embeddings)
    return [(i, j, vectors[i], vectors[j]) for i in range(len(vectors)) for j in range(i)]


def some_embeddings(count=40, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=count)
    return (rng.normal(size=(4, 6))[labels] + rng.normal(size=(count, 6))), labels


@pytest.mark.parametrize("block_size", [1, 300, None])
@pytest.mark.parametrize("kind", ["class", "multi_hot"])
def test_geometry_equals_the_loop_over_pairs(monkeypatch, block_size, kind):
    monkeypatch.setattr(retrieval, "BLOCK_SIZE", block_size or retrieval.BLOCK_SIZE)
    embeddings, labels = some_embeddings()
    if kind == "multi_hot":
        labels = np.random.default_rng(1).random((len(labels), 3)) < 0.4
        is_same = [np.any(labels[i] & labels[j]) for i, j, *_ in pairs(embeddings)]
    else:
        is_same = [labels[i] == labels[j] for i, j, *_ in pairs(embeddings)]
    distances = np.array([np.sum((x - y) ** 2) for _, _, x, y in pairs(embeddings)])
    cosines = np.array([np.sum(x * y) for _, _, x, y in pairs(embeddings)])
    is_same = np.array(is_same)
    expected = {
        "alignment": distances[is_same].mean(),
        "uniformity": np.log(np.mean(np.exp(-2 * distances))),
        "within_class_cosine": cosines[is_same].mean(),
        "between_class_cosine": cosines[~is_same].mean(),
    }
    found = geometry.geometry_metrics(embeddings, labels)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(geometry.effective_rank(unit(embeddings)))
    assert geometry.uniformity(embeddings) == pytest.approx(expected["uniformity"], abs=1e-6)
    within, between = geometry.class_cosines(embeddings, labels)
    assert (within, between) == (found["within_class_cosine"], found["between_class_cosine"])


@pytest.mark.parametrize("alpha", [1, 2])
def test_alignment_equals_the_loop(alpha):
    first, second = some_embeddings(seed=1)[0], some_embeddings(seed=2)[0]
    lengths = [
        np.sqrt(np.sum((x - y) ** 2)) for x, y in zip(unit(first), unit(second), strict=True)
    ]
    expected = np.mean([length**alpha for length in lengths])
    assert geometry.alignment(first, 3 * second, alpha=alpha) == pytest.approx(expected, abs=1e-6)
    assert geometry.alignment(first, first) == 0.0
    assert geometry.alignment(first, -first) == pytest.approx(4.0)


def test_all_of_one_point_and_two_opposite_points():
    """One point: distance 0, so log 1 = 0. Two poles: the only pair has distance 2: log e^-8."""
    collapsed = geometry.geometry_metrics(np.ones([5, 3]), np.zeros(5, int))
    assert collapsed["uniformity"] == pytest.approx(0.0, abs=1e-6)
    assert collapsed["alignment"] == pytest.approx(0.0, abs=1e-6)
    assert collapsed["between_class_cosine"] is None
    assert collapsed["effective_rank"] == pytest.approx(1.0, abs=1e-4)
    poles = geometry.geometry_metrics(np.array([[1.0, 0.0], [-2.0, 0.0]]), np.array([0, 1]))
    assert poles["uniformity"] == pytest.approx(-8.0)
    assert poles["alignment"] is None and poles["within_class_cosine"] is None
    assert poles["between_class_cosine"] == pytest.approx(-1.0)


def test_uniformity_of_a_large_sphere():
    """cos ~ N(0, 1/D) there: log E exp(-2t + 2t cos) = -2t + 2 t^2 / D."""
    sphere = np.random.default_rng(0).normal(size=(1_000, 256))
    assert geometry.uniformity(sphere) == pytest.approx(-4 + 8 / 256, abs=0.01)


def test_figures_do_not_depend_on_length_or_rotation():
    embeddings, labels = some_embeddings()
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))
    lengths = np.random.default_rng(6).uniform(0.1, 10, size=(len(labels), 1))
    expected = geometry.geometry_metrics(embeddings, labels)
    changed = geometry.geometry_metrics(lengths * embeddings @ rotation, labels)
    assert changed == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(30, 5), (5, 30), (8, 8)])
def test_effective_rank_equals_the_singular_values(monkeypatch, shape):
    monkeypatch.setattr(retrieval, "BLOCK_SIZE", 20)
    matrix = np.random.default_rng(0).normal(size=shape) * np.linspace(0.01, 3, shape[1])
    shares = np.linalg.svd(matrix, compute_uv=False)
    shares = shares / shares.sum()
    expected = np.exp(-sum(p * np.log(p) for p in shares))
    assert geometry.effective_rank(matrix) == pytest.approx(expected)


def test_effective_rank_of_known_matrices():
    assert geometry.effective_rank(np.eye(7)) == pytest.approx(7.0)
    assert geometry.effective_rank(np.outer(np.arange(1, 9), [1, 2, 3])) == pytest.approx(
        1, abs=1e-4
    )
    with pytest.raises(ValueError, match="zero"):
        geometry.effective_rank(np.zeros([3, 2]))


def test_one_embedding_has_no_geometry():
    with pytest.raises(ValueError, match="two embeddings"):
        geometry.uniformity(np.ones([1, 3]))


def test_labels_of_another_number_of_examples_are_refused():
    with pytest.raises(ValueError, match="labels of 4 embeddings, got 3"):
        geometry.geometry_metrics(np.eye(4), np.zeros(3, int))
