"""Confident learning against its equations in float64, and on labels that are wrong on purpose."""

import numpy as np
import pytest

from supcon_tf.evaluation import label_errors


def random_case(seed, num_examples=60, num_classes=4):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=[num_examples, num_classes])
    labels = rng.integers(0, num_classes, num_examples)
    logits[np.arange(num_examples), labels] += 1.5 * (rng.random(num_examples) < 0.8)
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True), labels


def confident_joint(probabilities, labels):
    """Northcutt et al. 2021: Eq. 2 (thresholds), 1 (confident joint) and 3 (calibrated joint)."""
    num_classes = probabilities.shape[1]
    thresholds = [
        sum(p[c] for p, label in zip(probabilities, labels, strict=True) if label == c)
        / sum(label == c for label in labels)
        for c in range(num_classes)
    ]
    counts = [[0.0] * num_classes for _ in range(num_classes)]
    suggested = []
    for p, label in zip(probabilities, labels, strict=True):
        above = [c for c in range(num_classes) if p[c] >= thresholds[c]]
        best = max(above, key=lambda c: p[c]) if above else -1
        suggested.append(best)
        if above:
            counts[label][best] += 1
    joint = np.array(
        [
            np.array(row) / sum(row) * sum(label == c for label in labels)
            for c, row in enumerate(counts)
        ]
    )
    return thresholds, suggested, joint / joint.sum()


@pytest.mark.parametrize("seed", range(5))
def test_confident_learning_equals_its_equations(seed):
    probabilities, labels = random_case(seed)
    found = label_errors.find_label_errors(probabilities, labels)
    thresholds, suggested, joint = confident_joint(probabilities, labels)
    np.testing.assert_allclose(found.thresholds, thresholds, rtol=1e-12)
    assert found.suggested.tolist() == suggested
    np.testing.assert_allclose(found.joint, joint, rtol=1e-12)
    listed = [s not in (-1, label) for s, label in zip(suggested, labels, strict=True)]
    assert found.is_listed.tolist() == listed
    assert found.estimated_error_rate == pytest.approx(1 - np.trace(joint))
    own = probabilities[np.arange(len(labels)), labels]
    np.testing.assert_allclose(found.scores, 1 - own, rtol=1e-12)
    ranked = found.ranked()
    assert sorted(ranked) == np.flatnonzero(listed).tolist()
    assert (np.diff(found.scores[ranked]) <= 0).all()


def test_classes_without_examples_are_never_suggested():
    probabilities = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1]])
    found = label_errors.find_label_errors(probabilities, np.array([0, 0, 0, 1]))
    assert 2 not in found.suggested
    assert np.isfinite(found.joint).all() and found.joint.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "probabilities,labels",
    [(np.ones([3, 2]), np.zeros(2, int)), (np.ones([2, 2]), np.array([0, 2]))],
)
def test_labels_that_do_not_fit_are_refused(probabilities, labels):
    with pytest.raises(ValueError, match=r"labels \[M\]|labels from 0 to 1"):
        label_errors.find_label_errors(probabilities, labels)


def clusters(seed=0, num_classes=3, per_class=40):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), per_class)
    embeddings = 9 * np.eye(num_classes + 2)[labels] + rng.normal(
        size=[len(labels), num_classes + 2]
    )
    return embeddings.astype(np.float32), labels


def test_wrong_labels_of_clusters_are_ranked_first():
    embeddings, labels = clusters()
    given = labels.copy()
    wrong = np.random.default_rng(1).permutation(len(labels))[:12]
    given[wrong] = (labels[wrong] + 1) % 3
    found = label_errors.find_label_errors(
        label_errors.label_probabilities(embeddings, given, 3), given
    )
    assert set(np.argsort(-found.scores)[:12]) == set(wrong)
    assert set(found.ranked()) >= set(wrong)
    assert found.suggested[wrong].tolist() == labels[wrong].tolist()
    assert found.estimated_error_rate == pytest.approx(0.1, abs=0.03)


def test_a_label_has_no_influence_on_its_own_probabilities():
    """Changing one label changes the rows of other examples, never its own."""
    embeddings, labels = clusters(per_class=10)
    changed = labels.copy()
    changed[7] = 2
    folds = label_errors.stratified_folds(labels, 5)
    for function in (
        lambda given: label_errors.neighbor_probabilities(embeddings, given, 3),
        lambda given: _with_folds(folds, embeddings, given),
    ):
        before, after = function(labels), function(changed)
        np.testing.assert_array_equal(before[7], after[7])
        assert not np.array_equal(before, after)


def _with_folds(folds, embeddings, labels):
    """The folds depend on the labels, so that they are held fixed here."""
    original = label_errors.stratified_folds
    label_errors.stratified_folds = lambda *_args, **_options: folds
    try:
        return label_errors.cross_validated_probabilities(embeddings, labels, 3)
    finally:
        label_errors.stratified_folds = original


def test_folds_divide_every_class_evenly():
    labels = np.repeat([0, 1, 2], [50, 20, 3])
    folds = label_errors.stratified_folds(labels, 5, seed=3)
    for label in (0, 1):
        assert np.bincount(folds[labels == label]).tolist() == [np.sum(labels == label) // 5] * 5
    assert len(set(folds[labels == 2])) == 3
    with pytest.raises(ValueError, match="from 2 to the 73 examples, got 1"):
        label_errors.stratified_folds(labels, 1)
