import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from supcon_tf.evaluation import out_of_distribution as ood
from supcon_tf.stages import embedding_figures


def some_sets(seed=0):
    """Training and test embeddings of three classes, and others that lie elsewhere."""
    rng = np.random.default_rng(seed)
    centers = 3 * rng.normal(size=(3, 5))
    labels = rng.integers(3, size=120)
    mixing = rng.normal(size=(5, 5))
    train = centers[labels] + rng.normal(size=(120, 5)) @ mixing
    inside = centers[rng.integers(3, size=60)] + rng.normal(size=(60, 5)) @ mixing
    outside = 3 * rng.normal(size=(70, 5)) @ mixing
    return train, labels, inside, outside


def unit(vector):
    return vector / np.sqrt(np.sum(vector**2))


@pytest.mark.parametrize("k", [1, 5, 500])
def test_neighbor_distance_equals_the_loop(k):
    train, _, inside, _ = some_sets()
    expected = [
        sorted(np.sqrt(np.sum((unit(x) - unit(y)) ** 2)) for y in train)[min(k, len(train)) - 1]
        for x in inside
    ]
    found = ood.knn_distances(7 * train, inside, k=k)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_small_neighbor_distances_keep_their_digits():
    train = np.array([[1.0, 0.0, 0.0]])
    near = np.array([[1.0, 1e-4, 0.0], [1.0, 2e-4, 0.0]])
    np.testing.assert_allclose(ood.knn_distances(train, near, k=1), [1e-4, 2e-4], rtol=1e-4)


def mahalanobis_loop(train, labels, tests):
    """Lee et al. 2018, Eqs. 1 and 2, one example and one class after the other."""
    classes = sorted(set(labels.tolist()))
    means = {
        c: np.mean([x for x, y in zip(train, labels, strict=True) if y == c], axis=0)
        for c in classes
    }
    covariance = np.zeros([train.shape[1]] * 2)
    for x, y in zip(train, labels, strict=True):
        covariance += np.outer(x - means[y], x - means[y]) / len(train)
    precision = np.linalg.pinv(covariance, hermitian=True)
    return [min((x - means[c]) @ precision @ (x - means[c]) for c in classes) for x in tests]


def test_mahalanobis_equals_the_loop_and_scikit_learn():
    from sklearn.covariance import EmpiricalCovariance

    train, labels, inside, _ = some_sets()
    found = ood.Mahalanobis(train, labels).distances(inside)
    np.testing.assert_allclose(found, mahalanobis_loop(train, labels, inside))
    means = np.stack([train[labels == c].mean(axis=0) for c in range(3)])
    fitted = EmpiricalCovariance(assume_centered=True).fit(train - means[labels])
    expected = np.min([fitted.mahalanobis(inside - mean) for mean in means], axis=0)
    np.testing.assert_allclose(found, expected)


def test_mahalanobis_does_not_depend_on_an_invertible_map():
    train, labels, inside, _ = some_sets()
    change = np.random.default_rng(9).normal(size=(5, 5))
    expected = ood.Mahalanobis(train, labels).distances(inside)
    found = ood.Mahalanobis(train @ change + 4, labels).distances(inside @ change + 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_directions_without_variation_have_no_weight():
    train, labels, inside, _ = some_sets()
    expected = ood.Mahalanobis(train, labels).distances(inside)
    wider = [np.hstack([x, np.full([len(x), 1], fill)]) for x, fill in ((train, 0), (inside, 5))]
    np.testing.assert_allclose(ood.Mahalanobis(wider[0], labels).distances(wider[1]), expected)


def test_max_softmax_equals_the_definition_and_stays_exact_for_sure_classes():
    logits = np.random.default_rng(0).normal(size=(20, 4))
    expected = [1 - np.max(np.exp(row) / np.sum(np.exp(row))) for row in logits]
    np.testing.assert_allclose(ood.max_softmax_scores(logits), expected)
    sure = ood.max_softmax_scores(np.array([[100.0, 0.0], [101.0, 0.0], [3.0, 3.0]]))
    np.testing.assert_allclose(sure, [np.exp(-100), np.exp(-101), 0.5])


def detection_loop(in_scores, out_scores):
    """All pairs for the AUROC; all thresholds, from the lowest, for the false positive rate."""
    wins = [(x < y) + 0.5 * (x == y) for x in in_scores for y in out_scores]
    for threshold in sorted(in_scores):
        if np.mean([x <= threshold for x in in_scores]) >= 0.95:
            return np.mean(wins), np.mean([y <= threshold for y in out_scores])
    raise AssertionError


@pytest.mark.parametrize("count", [1, 20, 33, 100])
@pytest.mark.parametrize("digits", [0, 8])
def test_detection_equals_the_loop_and_scikit_learn(count, digits):
    rng = np.random.default_rng(count)
    in_scores = np.round(rng.normal(size=count), digits)  # digits=0: many ties
    out_scores = np.round(rng.normal(size=50) + 1, digits)
    found = ood.detection_metrics(in_scores, out_scores)
    auroc, rate = detection_loop(in_scores, out_scores)
    assert found == pytest.approx({"auroc": auroc, "fpr_at_95_tpr": rate})
    is_in = np.repeat([1, 0], [count, 50])
    scores = -np.concatenate([in_scores, out_scores])
    assert found["auroc"] == pytest.approx(roc_auc_score(is_in, scores))
    false, true, _ = roc_curve(is_in, scores, drop_intermediate=False)
    assert found["fpr_at_95_tpr"] == pytest.approx(false[true >= 0.95].min())


def test_sets_apart_and_one_set_twice():
    apart = ood.detection_metrics(np.arange(100), np.arange(100, 200))
    assert apart == {"auroc": 1.0, "fpr_at_95_tpr": 0.0}
    same = ood.detection_metrics(np.arange(100), np.arange(100))
    assert same == pytest.approx({"auroc": 0.5, "fpr_at_95_tpr": 0.95})


def test_every_score_detects_what_lies_elsewhere():
    train, labels, inside, outside = some_sets()
    logits = [x @ (4 * np.eye(5)[:, :3]) for x in (inside, outside)]
    found = ood.out_of_distribution_metrics(
        train, labels, inside, outside, in_logits=logits[0], out_logits=logits[1], num_neighbors=5
    )
    assert set(found) == {"knn", "mahalanobis", "max_softmax"}
    assert found["mahalanobis"]["auroc"] > 0.85
    assert found["knn"]["auroc"] > 0.6
    assert set(ood.out_of_distribution_metrics(train, labels, inside, outside)) == {
        *("knn", "mahalanobis")
    }
    several = np.eye(3)[labels]
    assert set(ood.out_of_distribution_metrics(train, several, inside, outside)) == {"knn"}


def test_a_collapsed_encoder_has_no_mahalanobis_score_and_the_other_figures(capsys):
    same, labels = np.ones([6, 2]), np.arange(6) % 2
    logits = np.zeros([6, 2])
    found = ood.out_of_distribution_metrics(
        same, labels, same, same, in_logits=logits, out_logits=logits
    )
    assert set(found) == {"knn", "max_softmax"}
    assert found["knn"]["auroc"] == found["max_softmax"]["auroc"] == 0.5
    outputs = {"unnormalized_embeddings": same, "logits": logits}
    found = embedding_figures.detection((outputs, labels), outputs, outputs)
    assert set(found) == {"knn", "max_softmax", "num_examples"}
    assert "Mahalanobis score is left out" in capsys.readouterr().out
    found = embedding_figures.detection((outputs, np.eye(2)[labels]), outputs, outputs)
    assert "left out" not in capsys.readouterr().out


def test_inputs_that_mean_nothing_are_refused():
    train, labels, inside, _ = some_sets()
    with pytest.raises(ValueError, match="one class per example"):
        ood.Mahalanobis(train, np.eye(3)[labels])
    with pytest.raises(ValueError, match="examples differ"):
        ood.Mahalanobis(np.ones([4, 2]), np.zeros(4, int))
    with pytest.raises(ValueError, match="0 out-of-distribution"):
        ood.detection_metrics(np.ones(3), np.ones(0))
    with pytest.raises(ValueError, match="1 not finite"):
        ood.detection_metrics(np.ones(3), np.array([np.nan]))
    with pytest.raises(ValueError, match="both of in_logits"):
        ood.out_of_distribution_metrics(train, labels, inside, inside, in_logits=np.eye(2))
