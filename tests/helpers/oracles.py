"""The equations as slow float64 loops: what the fast code is held to."""

import itertools

import numpy as np


def share_a_class(labels, i, j):
    if labels is None:
        return i == j
    if np.ndim(labels) == 1:
        return i == j or labels[i] == labels[j]
    return i == j or bool(np.any((labels[i] != 0) & (labels[j] != 0)))


def supcon_loss(
    labels,
    features,
    *,
    temperature=0.1,
    contrast_mode="all_views",
    summation_location="outside",
    denominator_mode="all",
    positives_cap=-1,
    scale_by_temperature=True,
    normalize=True,
):
    """Khosla et al. 2020, Eq. 2 and 3, one anchor after the other. [B, V, D] -> [B]."""
    z = np.asarray(features, np.float64)
    num_examples, num_views, _ = z.shape
    if normalize:
        norm = np.sqrt(np.sum(z**2, axis=-1, keepdims=True))
        z = z / np.where(norm == 0, 1, norm)
    rows = list(itertools.product(range(num_examples), range(num_views)))

    losses = np.zeros(num_examples)
    for i in range(num_examples):
        related = [j for j in range(num_examples) if j != i and share_a_class(labels, i, j)]
        kept = related if positives_cap < 0 else related[: positives_cap // num_views]
        anchor_views = [0] if contrast_mode == "one_view" else range(num_views)
        for view in anchor_views:
            anchor = z[i, view]
            positives = [
                anchor @ z[j, w] / temperature
                for j, w in rows
                if (j in kept or j == i) and (j, w) != (i, view)
            ]
            negatives = [
                anchor @ z[j, w] / temperature for j, w in rows if j != i and j not in related
            ]
            losses[i] += anchor_loss(
                np.array(positives), np.array(negatives), summation_location, denominator_mode
            ) / len(anchor_views)
    return losses * temperature if scale_by_temperature else losses


def anchor_loss(positives, negatives, summation_location, denominator_mode):
    denominators = {
        "all": lambda s: logsumexp([*positives, *negatives]),
        "one_positive": lambda s: logsumexp([s, *negatives]),
        "only_negatives": lambda s: logsumexp(negatives),
    }
    if len(positives) == 0 or (denominator_mode == "only_negatives" and len(negatives) == 0):
        return 0.0
    log_probs = [s - denominators[denominator_mode](s) for s in positives]
    if summation_location == "outside":
        return -np.mean(log_probs)
    return np.log(len(positives)) - logsumexp(log_probs)


def logsumexp(values):
    values = np.asarray(values, np.float64)
    return np.max(values) + np.log(np.sum(np.exp(values - np.max(values))))


def gradient(function, x, step=1e-6):
    """Central differences of a scalar function, entry by entry."""
    x = np.array(x, np.float64)
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        forward, backward = x.copy(), x.copy()
        forward[index] += step
        backward[index] -= step
        result[index] = (function(forward) - function(backward)) / (2 * step)
    return result


def gradient_at_once(function, x, step=1e-6):
    """`gradient` of a function that takes many inputs [P, ...] in one call. -> shape of x."""
    x = np.array(x, np.float64)
    steps = step * np.eye(x.size).reshape(x.size, *x.shape)
    return ((function(x + steps) - function(x - steps)) / (2 * step)).reshape(x.shape)


def supcon_loss_by_rows(labels, features, *, normalize=True, temperature=0.1, **options):
    """`supcon_loss` above with one vector operation per anchor: [..., B, V, D] -> [..., B].

    For batches of hundreds, or for many batches at once along the leading axes.
    """
    z = np.asarray(features, np.float64)
    *leading, num_examples, num_views, _ = z.shape
    if normalize:
        norm = np.sqrt(np.sum(z**2, axis=-1, keepdims=True))
        z = z / np.where(norm == 0, 1, norm)
    if labels is None:
        shared = np.eye(num_examples, dtype=bool)
    elif np.ndim(labels) == 1:
        shared = np.equal.outer(labels, labels)
    else:
        member = np.asarray(labels) != 0
        shared = np.any(member[:, None] & member[None, :], axis=-1)
    cap = options.get("positives_cap", -1)
    num_anchors = 1 if options.get("contrast_mode") == "one_view" else num_views

    losses = np.zeros([*leading, num_examples])
    for i in range(num_examples):
        related = shared[i].copy()
        related[i] = False
        kept = related & (cap < 0 or np.cumsum(related) <= cap // num_views)
        negative = ~related
        negative[i] = False
        for view in range(num_anchors):
            anchor = z[..., i, view, :]
            similarity = np.einsum("...nvd,...d->...nv", z, anchor) / temperature  # [..., N, V]
            own = np.delete(similarity[..., i, :], view, axis=-1)
            others = similarity[..., kept, :].reshape(*leading, -1)
            losses[..., i] += vector_anchor_loss(
                np.concatenate([own, others], axis=-1),
                similarity[..., negative, :].reshape(*leading, -1),
                options.get("summation_location", "outside"),
                options.get("denominator_mode", "all"),
            )
    return losses / num_anchors * (temperature if options.get("scale_by_temperature", True) else 1)


def vector_anchor_loss(positives, negatives, summation_location, denominator_mode):
    """`anchor_loss` above along the last axis."""
    num_positives, num_negatives = positives.shape[-1], negatives.shape[-1]
    if num_positives == 0 or (denominator_mode == "only_negatives" and num_negatives == 0):
        return 0.0
    denominator = np.logaddexp.reduce(negatives, axis=-1)[..., None]  # -inf without any.
    if denominator_mode == "all":
        every = np.concatenate([positives, negatives], axis=-1)
        denominator = np.logaddexp.reduce(every, axis=-1)[..., None]
    elif denominator_mode == "one_positive":
        denominator = np.logaddexp(positives, denominator)
    log_probs = positives - denominator
    if summation_location == "outside":
        return -np.mean(log_probs, axis=-1)
    return np.log(num_positives) - np.logaddexp.reduce(log_probs, axis=-1)


def weighted_loss(
    weights,
    features,
    *,
    classes=None,
    temperature=0.1,
    contrast_mode="all_views",
    summation_location="outside",
    denominator_mode="all",
    positives_cap=-1,
    scale_by_temperature=True,
    normalize=True,
    epsilon=0.0,
    spread_weight=0.0,
    denominator_weighting="example",
):
    """The whole family from a matrix of weights [B, B], one pair of rows after the other.

    The diagonal holds the weight of two views of one example. A pair with a weight above 0 is
    positive. `classes` [B] are those of the class averages. Features [B, V, D] -> [B].
    """
    z = np.asarray(features, np.float64)
    num_examples, num_views, _ = z.shape
    if normalize:
        norm = np.sqrt(np.sum(z**2, axis=-1, keepdims=True))
        z = z / np.where(norm == 0, 1, norm)
    losses = np.zeros(num_examples)
    anchor_views = [0] if contrast_mode == "one_view" else range(num_views)
    for i, view in itertools.product(range(num_examples), anchor_views):
        positives, negatives, own, num_kept = [], [], [], 0
        for j in range(num_examples):
            is_kept = weights[i][j] > 0
            if is_kept and j != i:
                num_kept += 1
                if 0 <= positives_cap // num_views < num_kept and positives_cap >= 0:
                    continue  # Above the cap: neither a positive nor a negative.
            for w in range(num_views):
                if (j, w) == (i, view):
                    continue
                s = z[i, view] @ z[j, w] / temperature
                size = 1
                if denominator_weighting == "class":
                    size = num_views * sum(other == classes[j] for other in classes)
                if is_kept:
                    positives.append((weights[i][j], s, np.exp(s - epsilon) / size))
                else:
                    negatives.append(np.exp(s) / size)
                if j == i:
                    own.append(s)
        total = sum(weight for weight, _, _ in positives)
        loss = 0.0
        if total > 0 and (negatives or denominator_mode != "only_negatives"):
            probabilities = []
            for weight, s, term in positives:
                denominator = sum(negatives)
                if denominator_mode == "one_positive":
                    denominator += term
                elif denominator_mode == "all":
                    denominator += sum(other for _, _, other in positives)
                probabilities.append((weight / total, np.exp(s) / denominator))
            if summation_location == "outside":
                loss = -sum(share * np.log(p) for share, p in probabilities)
            else:
                loss = -np.log(sum(share * p for share, p in probabilities))
        if spread_weight:
            of_class = logsumexp([s for _, s, _ in positives] + (own if not weights[i][i] else []))
            loss = (1 - spread_weight) * loss - spread_weight * (np.mean(own) - of_class)
        losses[i] += loss / len(anchor_views)
    return losses * temperature if scale_by_temperature else losses
