"""A linear classifier or a ridge regression on frozen embeddings, fitted to the optimum."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from supcon_tf.evaluation import metrics, multi_label

# Limit for embeddings and logits together, both float32; scikit-learn makes copies of them. 1 GiB
# is 130,000 examples with 2,048 features and 10 classes, or 3.6 million with 64 features.
MAX_BYTES = 2**30
# The logit of a class without training examples: its probability is practically zero.
ABSENT_LOGIT = -100.0
# The L2 penalties that ridge regression chooses from; the standardized features have variance 1.
RIDGE_PENALTIES = tuple(10.0**exponent for exponent in range(-3, 7))


def fit_bytes(num_examples: int, num_features: int, num_classes: int) -> int:
    """Bytes of embeddings [M, F] and logits [M, C] together, to compare with `MAX_BYTES`."""
    return 4 * num_examples * (num_features + num_classes)


@dataclasses.dataclass(frozen=True)
class LinearFit:
    """A fitted classifier with the logits `features @ kernel + bias`.

    Attributes:
        kernel: float32 [F, C].
        bias: float32 [C].
        iterations: Number of L-BFGS iterations. `metrics.PROBE_MAX_ITERATIONS` means that the
            solver stopped at this limit.
        loss: Mean cross-entropy on the training examples, in nats. For multi-hot labels, the
            mean over all examples and classes.
        accuracy: Accuracy on the training examples. For multi-hot labels, the fraction of
            correct decisions over all examples and classes.
    """

    kernel: np.ndarray
    bias: np.ndarray
    iterations: int
    loss: float
    accuracy: float


def fit(
    embeddings: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    normalize_embedding: bool = True,
    class_balanced: bool = False,
) -> LinearFit:
    """Fits a logistic regression by L-BFGS for the head of `contrastive.create_linear_head`.

    This is the regression of `metrics.linear_probe_accuracy`: features are standardized with the
    statistics of the training embeddings, and the kernel has an L2 penalty. The objective is
    convex, so there is no learning rate, schedule or initialization to choose. The
    standardization is folded into kernel and bias.

    Args:
        embeddings: float32 [M, F].
        labels: int [M] in 0..C-1, or multi-hot [M, C] for one regression per class whose
            sigmoid is the probability that an image has the class.
        num_classes: C. A class without training examples gets the logit `ABSENT_LOGIT`.
        normalize_embedding: L2-normalize the embeddings first, as the head does in this case.
        class_balanced: Give every class the same total weight, instead of every example.
    """
    features = _features(embeddings, normalize_embedding)
    if np.ndim(labels) == 2:
        return _fit_each_class(features, labels, class_balanced)
    kernel = np.zeros([features.shape[1], num_classes], np.float32)
    bias = np.full([num_classes], ABSENT_LOGIT, np.float32)
    classes = np.unique(labels)
    if len(classes) == 1:  # A single class needs no regression.
        bias[classes], iterations = 0.0, 0
    else:
        coefficients, intercepts, iterations = _regress(features, labels, class_balanced)
        kernel[:, classes], bias[classes] = coefficients.T, intercepts
    logits = features @ kernel + bias
    return LinearFit(
        kernel,
        bias,
        iterations,
        metrics.negative_log_likelihood(logits, labels),
        metrics.top_k_accuracy(logits, labels),
    )


@dataclasses.dataclass(frozen=True)
class RidgeFit:
    """A fitted regression that predicts `features @ kernel + bias`.

    Attributes:
        kernel: float32 [F, 1].
        bias: float32 [1].
        penalty: The weight of the squared coefficients, on standardized features.
        mean_absolute_error: On the training examples.
        r2: R2 on the training examples.
    """

    kernel: np.ndarray
    bias: np.ndarray
    penalty: float
    mean_absolute_error: float
    r2: float


def fit_ridge(
    embeddings: np.ndarray, targets: np.ndarray, *, normalize_embedding: bool = True
) -> RidgeFit:
    """Fits a ridge regression for the head of `contrastive.create_linear_head` with one output.

    Features are standardized with the statistics of the training embeddings, which are folded
    into kernel and bias. The penalty is the one of `RIDGE_PENALTIES` with the smallest squared
    error when each training example is predicted from all others (scikit-learn's `RidgeCV`).

    Args:
        embeddings: float32 [M, F].
        targets: float [M].
        normalize_embedding: L2-normalize the embeddings first, as the head does in this case.

    Raises:
        ValueError: If there are fewer than two examples or all targets are equal.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    features = _features(embeddings, normalize_embedding).astype(np.float64)
    targets = np.asarray(targets, np.float64)
    if len(targets) < 2 or np.ptp(targets) == 0:
        raise ValueError(
            f"A regression needs targets that differ; the {len(targets):,} training examples have "
            "one value."
        )
    scaler = StandardScaler().fit(features)
    regression = RidgeCV(alphas=RIDGE_PENALTIES).fit(scaler.transform(features), targets)
    coefficients = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - coefficients @ scaler.mean_
    figures = multi_label.regression_metrics(features @ coefficients + bias, targets)
    return RidgeFit(
        coefficients[:, None].astype(np.float32),
        np.array([bias], np.float32),
        float(regression.alpha_),
        figures["mean_absolute_error"],
        figures["r2"],
    )


def _features(embeddings, normalize_embedding):
    """What the head computes from embeddings [M, F] before its kernel."""
    if not normalize_embedding:
        return embeddings
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(norms, np.finfo(np.float32).tiny)


def _fit_each_class(features, labels, class_balanced):
    """Fits one regression per class of multi-hot labels: examples with it against those without."""
    labels = np.asarray(labels) > 0
    kernel = np.zeros([features.shape[1], labels.shape[1]], np.float32)
    # Initial values for the classes that none or all of the examples have.
    bias = np.where(labels.all(axis=0), -ABSENT_LOGIT, ABSENT_LOGIT).astype(np.float32)
    most_iterations = 0
    for column in np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0)):
        targets = labels[:, column].astype(int)
        coefficients, intercepts, iterations = _regress(features, targets, class_balanced)
        kernel[:, column] = coefficients[1] - coefficients[0]
        bias[column] = intercepts[1] - intercepts[0]
        most_iterations = max(most_iterations, iterations)
    logits = (features @ kernel + bias).astype(np.float64)
    loss = np.mean(np.logaddexp(0.0, np.where(labels, -logits, logits)))
    accuracy = np.mean((logits > 0) == labels)
    return LinearFit(kernel, bias, most_iterations, float(loss), float(accuracy))


def _regress(features, labels, class_balanced):
    """Returns coefficients float64 [K, F], intercepts [K] (K classes occur), and iterations."""
    from sklearn.exceptions import ConvergenceWarning

    probe = metrics.create_linear_probe(class_weight="balanced" if class_balanced else None)
    with warnings.catch_warnings():
        # The number of iterations tells the caller whether the solver converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features, labels)
    scaler, regression = (step for _, step in probe.steps)
    coefficients = np.asarray(regression.coef_, np.float64)
    intercepts = np.asarray(regression.intercept_, np.float64)
    if len(coefficients) == 1:  # Two classes: second logit minus first.
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    # c (x - mean) / scale + b = (c / scale) x + (b - (c / scale) mean)
    coefficients = coefficients / scaler.scale_
    return coefficients, intercepts - coefficients @ scaler.mean_, int(regression.n_iter_.max())
