"""The options of the supervised contrastive loss: their meaning, their defaults, their check.

Importing this module imports no TensorFlow, because the command checks its flags with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

CONTRAST_MODES = ("all_views", "one_view")
SUMMATION_LOCATIONS = ("outside", "inside")
DENOMINATOR_MODES = ("all", "one_positive", "only_negatives")
DENOMINATOR_WEIGHTINGS = ("example", "class")
PAIR_WEIGHTS = ("jaccard", "hierarchy", "gaussian", "soft", "mask")

# Losses of the literature, as arguments of `SupConLoss`; docs/losses.md describes each.
LOSS_VARIANTS: dict[str, dict[str, Any]] = {
    # Khosla et al. 2020, Eq. 2 and Eq. 3.
    "supcon": {"summation_location": "outside", "denominator_mode": "all"},
    "supcon_in": {"summation_location": "inside", "denominator_mode": "all"},
    # Chen et al. 2020, https://arxiv.org/abs/2002.05709
    "simclr": {"use_labels": False, "summation_location": "outside", "denominator_mode": "all"},
    # Feeney and Hughes 2023, https://arxiv.org/abs/2309.14277
    "sincere": {"summation_location": "outside", "denominator_mode": "one_positive"},
    # Yeh et al. 2022, https://arxiv.org/abs/2110.06848
    "decoupled": {"summation_location": "outside", "denominator_mode": "only_negatives"},
    # Barbano et al. 2023, https://arxiv.org/abs/2211.05568
    "epsilon_supinfonce": {
        "summation_location": "outside",
        "denominator_mode": "one_positive",
        "epsilon": 0.25,
    },
    # Chen et al. 2022, https://arxiv.org/abs/2204.07596
    "spread": {
        "summation_location": "outside",
        "denominator_mode": "all",
        "spread_weight": 0.5,
    },
    # The class averages of Zhu et al. 2022, https://arxiv.org/abs/2207.09052
    "class_averaged": {
        "summation_location": "outside",
        "denominator_mode": "all",
        "denominator_weighting": "class",
    },
}


@dataclasses.dataclass(frozen=True)
class SupConOptions:
    """How `supcon_loss` and `SupConLoss` compare the rows of a batch.

    Both take each of these options as a keyword argument with the default given here.

    Args:
        temperature: Similarities are divided by it. Greater than 0; the paper uses 0.1.
        contrast_mode: Which views are anchors: `"all_views"`, or only the first view of each
            example with `"one_view"`. The contrasts are always all views.
        summation_location: Whether the sum over positives is `"outside"` (Eq. 2) or `"inside"`
            (Eq. 3) the logarithm.
        denominator_mode: What the denominator sums over: `"all"` contrasts as in the paper,
            `"one_positive"` for the positive of the numerator and all negatives, or
            `"only_negatives"`.
        positives_cap: Maximum number of positives per anchor, not counting the other views of
            its own example. Whole examples are kept, lowest index in the global batch first, so
            the number must be a multiple of V. Positives above the cap are also left out of the
            denominator (Table 5). -1 keeps all positives.
        scale_by_temperature: Multiply the loss by the temperature, which makes the size of the
            gradients independent of it.
        normalize: Divide each feature vector by its L2 norm first. A zero vector stays zero.
        block_size: Number of anchors, and of contrasts where no mask is needed, that are compared
            at a time. It bounds the memory and does not change the result. None chooses a size.
        epsilon: A margin: positives count with exp(s - epsilon) in the denominator. At least 0,
            in the units of s, a similarity divided by the temperature.
        pair_weights: How much two examples are positives of each other, from 0 to 1, by their
            labels: a name, "jaccard", "hierarchy", "gaussian", "soft" or "mask", or a function
            (labels_i [b, ...], labels_j [n, ...]) -> [b, n]; see `supcon_tf.losses.pair_weights`.
            Two views of one example have the weight 1. None: 1 within a class and 0 otherwise.
        spread_weight: From 0 to 1: the weight of a second loss, which keeps the examples of a
            class apart (`supcon_loss` has its equation). The loss above has the weight
            1 - spread_weight. Needs labels and two or more views.
        denominator_weighting: Whether each contrast counts the same in the denominator
            (`"example"`), or each class (`"class"`), for classes of different sizes. Needs one
            class per example.
        cache_mb: Megabytes per replica in which the exponentials of the similarities are kept
            for the gradient; what does not fit is computed again. It does not change the result.
            0 keeps nothing. Used where no mask is needed, from 1,024 rows (V N) on.

    Raises:
        ValueError: An option is out of range, or two of them exclude each other.
    """

    temperature: float = 0.1
    contrast_mode: str = "all_views"
    summation_location: str = "outside"
    denominator_mode: str = "all"
    positives_cap: int = -1
    scale_by_temperature: bool = True
    normalize: bool = True
    block_size: int | None = None
    epsilon: float = 0.0
    pair_weights: str | Callable | None = None
    spread_weight: float = 0.0
    denominator_weighting: str = "example"
    cache_mb: float = 192.0

    def __post_init__(self):
        if not self.temperature > 0:  # Also refuses NaN.
            raise ValueError(
                f"temperature={self.temperature} must be greater than 0; the paper uses 0.1."
            )
        if self.positives_cap < -1:
            raise ValueError(
                f"positives_cap={self.positives_cap} must be -1 (no cap), 0 or a positive "
                "multiple of the number of views."
            )
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(
                f"block_size={self.block_size} must be at least 1, or None to choose a size."
            )
        if not 0 <= self.epsilon < float("inf"):
            raise ValueError(
                f"epsilon={self.epsilon} must be 0 (no margin) or more, in the units of a "
                "similarity divided by the temperature."
            )
        if not 0 <= self.cache_mb < float("inf"):
            raise ValueError(
                f"cache_mb={self.cache_mb} must be 0 (no cache) or more, in megabytes."
            )
        if not 0 <= self.spread_weight <= 1:
            raise ValueError(f"spread_weight={self.spread_weight} must be from 0 to 1.")
        for name, allowed in (
            ("contrast_mode", CONTRAST_MODES),
            ("summation_location", SUMMATION_LOCATIONS),
            ("denominator_mode", DENOMINATOR_MODES),
            ("denominator_weighting", DENOMINATOR_WEIGHTINGS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"Invalid {name}={value!r}: choose one of {', '.join(allowed)}.")
        weights = self.pair_weights
        if not (weights is None or callable(weights) or weights in PAIR_WEIGHTS):
            raise ValueError(
                f"Invalid pair_weights={weights!r}: choose one of {', '.join(PAIR_WEIGHTS)}, or "
                "pass a function (labels_i, labels_j) -> weights [b, n]."
            )
        reason = self.why_impossible()
        if reason:
            raise ValueError(reason)

    def why_impossible(self) -> str | None:
        """Returns why two options exclude each other, or None."""
        if self.epsilon and self.denominator_mode == "only_negatives":
            return (
                f"epsilon={self.epsilon} has no effect with denominator_mode='only_negatives', "
                "whose denominator has no positive. Use 'one_positive' or 'all'."
            )
        if self.denominator_weighting == "class":
            if self.denominator_mode == "one_positive" or self.positives_cap != -1:
                return (
                    "denominator_weighting='class' averages over all contrasts of a class, and "
                    "denominator_mode='one_positive' or a positives_cap leaves some of the "
                    "anchor's class out. Use denominator_mode='all' and positives_cap=-1."
                )
            if isinstance(self.pair_weights, str):
                return (
                    "denominator_weighting='class' needs one class per example, which the labels "
                    f"of pair_weights={self.pair_weights!r} are not. Leave one out."
                )
        has_no_zeros = self.pair_weights == "gaussian" or getattr(
            self.pair_weights, "has_no_zeros", False
        )
        if has_no_zeros and not self.has_collapse_loss:
            return (
                "pair_weights='gaussian' makes every pair a positive, so there are no negatives "
                "and no classes: it needs denominator_mode='all', positives_cap=-1, epsilon=0, "
                "spread_weight=0 and denominator_weighting='example'."
            )
        return None

    @property
    def needs_masks(self) -> bool:
        """Whether positives and negatives must be told apart for each pair of rows.

        Eq. 2 with all positives and the full denominator needs only the sum over each class, or
        that of all rows times the weights of their pairs.
        """
        settings = self.summation_location, self.denominator_mode, self.positives_cap
        spreads_weighted = self.spread_weight > 0 and self.pair_weights is not None
        return settings != ("outside", "all", -1) or self.epsilon > 0 or spreads_weighted

    @property
    def has_collapse_loss(self) -> bool:
        """Whether equal embeddings have the loss that `collapse_loss` returns.

        It needs the denominator to be the plain sum over all contrasts.
        """
        return (
            self.denominator_mode == "all"
            and self.positives_cap == -1
            and not self.epsilon
            and not self.spread_weight
            and self.denominator_weighting == "example"
        )
