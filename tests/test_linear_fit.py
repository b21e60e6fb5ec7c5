"""The fitted linear head: its logits are those of scikit-learn's logistic regression."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from supcon_tf.evaluation import linear_fit, metrics
from supcon_tf.models import contrastive


def draw(num_classes, num_examples=120, num_features=7, seed=0):
    """Overlapping clusters, far from the origin and with features of very different size."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_examples) % num_classes
    centers = random.normal(size=[num_classes, num_features])
    embeddings = centers[labels] + random.normal(size=[num_examples, num_features])
    sizes = 10.0 ** np.arange(-2, num_features - 2)
    return ((embeddings + 3) * sizes).astype(np.float32), labels


def create_head(fitted, normalize=True):
    head = contrastive.create_linear_head(*fitted.kernel.shape, normalize_embedding=normalize)
    head.set_weights([fitted.kernel, fitted.bias])
    return head


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_logits_of_the_saved_head_equal_the_fitted_ones(num_classes, normalize, tmp_path):
    embeddings, labels = draw(num_classes)
    fitted = linear_fit.fit(embeddings, labels, num_classes, normalize_embedding=normalize)
    head = create_head(fitted, normalize)
    head.save(tmp_path / "head.keras")
    new, _ = draw(num_classes, seed=1)
    logits = keras.models.load_model(tmp_path / "head.keras").predict(new, verbose=0)

    features, new = (unit(x) if normalize else x for x in (embeddings, new))
    scaler = StandardScaler().fit(features)
    regression = LogisticRegression(max_iter=1000).fit(scaler.transform(features), labels)
    expected = regression.decision_function(scaler.transform(new))
    if num_classes == 2:  # One column: the second logit minus the first.
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(logits.sum(axis=1), 0, atol=1e-3)
    else:
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert 1 < fitted.iterations < 1000


def test_without_normalisation_it_scores_what_the_linear_probe_of_eval_scores():
    embeddings, labels = draw(4)
    new, new_labels = draw(4, seed=1)
    fitted = linear_fit.fit(embeddings, labels, 4, normalize_embedding=False)
    score = metrics.top_k_accuracy(new @ fitted.kernel + fitted.bias, new_labels)
    assert score == metrics.linear_probe_accuracy(embeddings, labels, new, new_labels)


def test_a_class_without_examples_is_never_predicted():
    embeddings, labels = draw(2)
    fitted = linear_fit.fit(embeddings, labels * 2, 4)  # Classes 0 and 2 of 4.
    logits = create_head(fitted).predict(embeddings, verbose=0)
    assert set(np.argmax(logits, axis=1)) == {0, 2}
    assert logits[:, [1, 3]].max() < logits[:, [0, 2]].min() - 50
    assert fitted.accuracy == np.mean(np.argmax(logits, axis=1) == labels * 2)
    only = linear_fit.fit(embeddings, np.full_like(labels, 3), 4)
    assert only.iterations == 0 and only.accuracy == 1.0 and only.loss < 1e-6


def test_balanced_classes_weigh_alike():
    """Nine tenths of the examples are of class 0, and the features say nothing."""
    random = np.random.default_rng(0)
    embeddings = random.normal(size=[1000, 3]).astype(np.float32)
    labels = (np.arange(1000) % 10 == 0).astype(int)
    shares = []
    for balanced in (False, True):
        fitted = linear_fit.fit(embeddings, labels, 2, class_balanced=balanced)
        shares.append(np.mean(np.argmax(unit(embeddings) @ fitted.kernel + fitted.bias, axis=1)))
    assert shares[0] == 0 and 0.3 < shares[1] < 0.7


def test_the_size_of_a_fit_counts_embeddings_and_logits():
    assert linear_fit.fit_bytes(1000, 64, 10) == 1000 * 74 * np.dtype(np.float32).itemsize
    assert linear_fit.fit_bytes(50_000, 2_048, 100) < linear_fit.MAX_BYTES  # CIFAR-100, ResNet-50
    assert linear_fit.fit_bytes(1_281_167, 2_048, 1_000) > linear_fit.MAX_BYTES  # ImageNet
