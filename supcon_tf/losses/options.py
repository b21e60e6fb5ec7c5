"""The options of the supervised contrastive loss: their meaning, their defaults, their check."""

from __future__ import annotations

import dataclasses

CONTRAST_MODES = ("all_views", "one_view")
SUMMATION_LOCATIONS = ("outside", "inside")
DENOMINATOR_MODES = ("all", "one_positive", "only_negatives")


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

    Raises:
        ValueError: An option is out of range.
    """

    temperature: float = 0.1
    contrast_mode: str = "all_views"
    summation_location: str = "outside"
    denominator_mode: str = "all"
    positives_cap: int = -1
    scale_by_temperature: bool = True
    normalize: bool = True
    block_size: int | None = None

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
        for name, allowed in (
            ("contrast_mode", CONTRAST_MODES),
            ("summation_location", SUMMATION_LOCATIONS),
            ("denominator_mode", DENOMINATOR_MODES),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"Invalid {name}={value!r}: choose one of {', '.join(allowed)}.")

    @property
    def needs_masks(self) -> bool:
        """Whether positives and negatives must be told apart for each pair of rows.

        Eq. 2 with all positives and the full denominator needs only the sum over each class.
        """
        settings = self.summation_location, self.denominator_mode, self.positives_cap
        return settings != ("outside", "all", -1)
