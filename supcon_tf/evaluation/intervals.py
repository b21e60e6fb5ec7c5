"""Confidence intervals of figures that are computed from a finite number of test examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from supcon_tf.evaluation import metrics
from supcon_tf.evaluation.retrieval import Retrieval

NUM_RESAMPLES = 2_000
# Draws made at a time by the vectorized bootstrap: 32 MiB of indices.
_BLOCK_SIZE = 2**22
# Draws of all resamples of one figure; with more than 100,000 examples there are fewer resamples.
_MAX_DRAWS = 2 * 10**8


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """The difference of two means, and its confidence interval."""

    difference: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion, such as the accuracy on `trials` test examples.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), from Wilson 1927,
    https://doi.org/10.1080/01621459.1927.10502953. Unlike p -+ z sqrt(p (1 - p)/n) it stays
    within 0 and 1 and has a width when all or no example is a success.

    Raises:
        ValueError: no trial, or more successes than trials.
    """
    if not (trials >= 1 and 0 <= successes <= trials):
        raise ValueError(
            f"Expected at least one trial and 0 to {trials} successes, got {successes}."
        )
    z = _quantile(confidence)
    successes, trials = int(successes), int(trials)  # NumPy's would overflow when squared.
    p = successes / trials
    center = p + z**2 / (2 * trials)
    margin = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    # At 0 or all successes one end is exactly 0 or 1, up to rounding.
    low = 0.0 if successes == 0 else (center - margin) / scale
    high = 1.0 if successes == trials else (center + margin) / scale
    return Interval(low, high)


def bootstrap_interval(
    values: np.ndarray | tuple[np.ndarray, ...],
    statistic: Callable[..., float] | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic over examples (Efron & Tibshirani 1993, ch. 13).

    Args:
        values: [N, ...], or a tuple of arrays of N examples each, such as (logits, labels), that
            are resampled together.
        statistic: from the resampled arrays to a number, such as `metrics.top_k_accuracy`; None
            is the mean of values [N], for which all resamples are computed together.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: no example, or arrays of different lengths.
    """
    arrays = tuple(np.asarray(x) for x in (values if isinstance(values, tuple) else (values,)))
    count = len(arrays[0])
    if count == 0 or any(len(array) != count for array in arrays):
        lengths = [len(array) for array in arrays]
        raise ValueError(f"Expected arrays of one length of at least 1, got lengths {lengths}.")
    if statistic is None and (len(arrays) > 1 or arrays[0].ndim > 1):
        raise ValueError("Without a statistic, expected one array of one value per example.")
    random = np.random.default_rng(seed)
    if statistic is None:
        results = _resampled_means(arrays[0].astype(np.float64), num_resamples, random)
    else:
        draws = (random.integers(count, size=count) for _ in range(num_resamples))
        results = np.array([statistic(*(array[draw] for array in arrays)) for draw in draws])
    tail = _tail(confidence)
    low, high = np.quantile(results, [tail, 1 - tail])
    return Interval(float(low), float(high))


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The mean of `second - first` over the same examples, with its bootstrap interval.

    An interval without 0 says that the two runs differ by more than the choice of test examples
    explains. It is narrower than what two separate intervals tell, because examples that are hard
    for both runs cancel. It does not cover the variation between training seeds.

    Args:
        first, second: [N], such as whether each example is classified correctly; row n of both
            belongs to the same example.

    Raises:
        ValueError: the two have different shapes.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"Expected a value of both runs for the same examples, got shapes "
            f"{list(first.shape)} and {list(second.shape)}."
        )
    change = second - first
    interval = bootstrap_interval(
        change, confidence=confidence, num_resamples=num_resamples, seed=seed
    )
    return Difference(float(np.mean(change)), *interval)


def classification_intervals(logits: np.ndarray, labels: np.ndarray) -> dict[str, Interval]:
    """95% intervals of figures of `metrics.classification_metrics`, by the same names.

    Wilson intervals of top_1 and, with more than five classes, top_5; bootstrap intervals of
    mean_per_class_accuracy and negative_log_likelihood. The calibration error has none: a resampled
    set is calibrated worse than the original, so its bootstrap interval is too high.

    Args:
        logits: [N, C].
        labels: int [N].
    """
    count, labels = len(labels), np.asarray(labels)
    found = {}
    for k in (1, 5) if logits.shape[1] > 5 else (1,):
        hits = round(metrics.top_k_accuracy(logits, labels, k) * count)
        found[f"top_{k}"] = wilson_interval(hits, count)
    num_resamples = min(NUM_RESAMPLES, max(200, _MAX_DRAWS // count))
    is_correct = np.argmax(logits, axis=1) == labels
    found["mean_per_class_accuracy"] = bootstrap_interval(
        (labels, is_correct.astype(np.float64)), _mean_per_class, num_resamples=num_resamples
    )
    found["negative_log_likelihood"] = bootstrap_interval(
        metrics.negative_log_likelihoods(logits, labels), num_resamples=num_resamples
    )
    return found


def retrieval_intervals(found: Retrieval) -> dict[str, Interval]:
    """95% intervals of a retrieval: Wilson of precision_at_1, bootstrap of the other two.

    They cover the choice of the queries, not that of the images that are searched.
    """
    count = len(found.queries)
    num_resamples = min(NUM_RESAMPLES, max(200, _MAX_DRAWS // count))
    return {
        "precision_at_1": wilson_interval(int(found.precision_at_1.sum()), count),
        "r_precision": bootstrap_interval(found.r_precision, num_resamples=num_resamples),
        "map_at_r": bootstrap_interval(found.map_at_r, num_resamples=num_resamples),
    }


def multi_label_intervals(
    scores: np.ndarray, labels: np.ndarray, *, threshold: float = 0.0
) -> dict[str, Interval]:
    """95% bootstrap intervals of figures of `multi_label.multi_label_metrics`, by the same names.

    In each resample, mean_average_precision and macro_f1 are means over the classes that occur in
    it. The intervals of a figure of few positive examples are wide.

    Args:
        scores: [N, C], such as logits.
        labels: bool or multi-hot [N, C].
        threshold: A class is predicted from this score on; 0 of logits is a probability of 0.5.
    """
    scores, labels = np.asarray(scores), np.asarray(labels) > 0
    count = len(labels)
    num_resamples = min(NUM_RESAMPLES, max(200, _MAX_DRAWS // scores.size))
    random = np.random.default_rng(0)
    rows = max(1, _BLOCK_SIZE // count)
    parts: dict[str, list] = {"mean_average_precision": [], "micro_f1": [], "macro_f1": []}
    for start in range(0, num_resamples, rows):
        draws = [
            np.bincount(random.integers(count, size=count), minlength=count)
            for _ in range(min(rows, num_resamples - start))
        ]
        counts = np.array(draws, np.float64)  # [R, N]: how often a resample has each example.
        occurs = counts @ labels > 0  # [R, C]
        classes = np.maximum(occurs.sum(axis=1), 1)
        precisions = np.stack(
            [
                _average_precisions(counts, *column)
                for column in zip(scores.T, labels.T, strict=True)
            ],
            axis=1,
        )
        parts["mean_average_precision"].append((precisions * occurs).sum(axis=1) / classes)
        predicted = scores >= threshold
        hits, total = counts @ (predicted & labels), counts @ predicted + counts @ labels
        f1 = 2 * hits / np.maximum(total, 1)
        parts["macro_f1"].append((f1 * occurs).sum(axis=1) / classes)
        parts["micro_f1"].append(2 * hits.sum(axis=1) / np.maximum(total.sum(axis=1), 1))
    limits = {
        name: np.quantile(np.concatenate(part), [0.025, 0.975]) for name, part in parts.items()
    }
    return {name: Interval(float(low), float(high)) for name, (low, high) in limits.items()}


def _average_precisions(counts, scores, labels):
    """The average precision of one class in each resample: [R]; 0 without a positive example.

    Sum over the different scores, from high to low, of (increase of the recall) * precision, as
    scikit-learn's `average_precision_score`, with an example counted as often as it was drawn.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    drawn = counts[:, order]
    positives = np.cumsum(drawn * labels[order], axis=1)[:, last_of_score]
    chosen = np.cumsum(drawn, axis=1)[:, last_of_score]
    found = np.diff(positives, axis=1, prepend=0.0) * positives / np.maximum(chosen, 1)
    return found.sum(axis=1) / np.maximum(positives[:, -1], 1)


def regression_intervals(predictions: np.ndarray, targets: np.ndarray) -> dict[str, Interval]:
    """95% bootstrap intervals of figures of `multi_label.regression_metrics`, by the same names.

    Args:
        predictions, targets: float [N].
    """
    predictions, targets = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    num_resamples = min(NUM_RESAMPLES, max(200, _MAX_DRAWS // len(targets)))
    errors = np.abs(predictions - targets)
    return {
        "mean_absolute_error": bootstrap_interval(errors, num_resamples=num_resamples),
        "r2": bootstrap_interval((predictions, targets), _r2, num_resamples=num_resamples),
    }


def _r2(predictions, targets):
    """R2; 0 where all targets are equal, as scikit-learn defines it."""
    variation = np.sum((targets - targets.mean()) ** 2)
    return float(1 - np.sum((targets - predictions) ** 2) / variation) if variation else 0.0


def _mean_per_class(labels, is_correct):
    """The mean accuracy of the classes that occur."""
    counts = np.bincount(labels)
    hits = np.bincount(labels, weights=is_correct)
    return float(np.mean(hits[counts > 0] / counts[counts > 0]))


def _resampled_means(values, num_resamples, random):
    """The means of samples of N values with replacement: float64 [num_resamples]."""
    rows = max(1, _BLOCK_SIZE // len(values))
    means = [
        values[random.integers(len(values), size=[min(rows, num_resamples - start), len(values)])]
        .mean(axis=1)
        for start in range(0, num_resamples, rows)
    ]  # fmt: skip
    return np.concatenate(means)


def _tail(confidence):
    if not 0 < confidence < 1:
        raise ValueError(f"Expected a confidence between 0 and 1, such as 0.95; got {confidence}.")
    return (1 - confidence) / 2


def _quantile(confidence):
    """z of the standard normal distribution: 1.96 for 95%."""
    from scipy.special import ndtri

    return float(ndtri(1 - _tail(confidence)))
