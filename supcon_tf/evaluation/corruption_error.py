"""Corruption errors: mCE and relative mCE of Hendrycks and Dietterich 2019.

https://arxiv.org/abs/1903.12261, Section 4. With the error rates E of a classifier and B of a
baseline, at severity s of the corruption c:

    CE_c          = sum_s E_sc / sum_s B_sc
    relative CE_c = sum_s (E_sc - E_clean) / sum_s (B_sc - B_clean)

mCE and relative mCE are the means over the corruptions, in percent.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from supcon_tf.evaluation.corruptions import CORRUPTIONS, SEVERITIES


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The error rates of the classifier that corruption errors are divided by.

    Attributes:
        name: What the classifier is.
        source: Where the rates come from.
        clean_error: On the test images as they are, 0 to 1; None if unknown.
        errors: The mean over the five severities by corruption, 0 to 1.
    """

    name: str
    source: str
    clean_error: float | None
    errors: Mapping[str, float]


# Means over the severities of torchvision's AlexNet on ImageNet-C, and its error on ImageNet's
# validation images.
ALEXNET = Baseline(
    name="AlexNet",
    source="https://github.com/hendrycks/robustness/issues/10 (corruptions); "
    "torchvision's AlexNet_Weights.IMAGENET1K_V1, 56.522% top-1 (clean)",
    clean_error=0.43478,
    errors={
        "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
        "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948,
        "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572, "fog": 0.819324,
        "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
        "pixelate": 0.717840, "jpeg_compression": 0.606500,
    },
)  # fmt: skip


def read_baseline(text: str, path: str) -> Baseline:
    """Reads a baseline from JSON, such as the `robustness.json` of another run.

    The object has `errors`, from the name of a corruption to its mean error rate or to the five
    rates of its severities (0 to 1), and may have `clean_error`, `name` and `source`.

    Args:
        text: The content of the file.
        path: Its path, for messages and as the source.

    Raises:
        ValueError: If it has another form. The message says what is wrong.
    """
    expected = (
        'Expected {"clean_error": 0.4, "errors": {"gaussian_noise": [0.5, 0.6, 0.7, 0.8, 0.9], '
        "...}}, such as the robustness.json of another run."
    )
    try:
        content = json.loads(text)
        given = content["errors"]
        clean = content.get("clean_error")
        errors = {name: float(np.mean(_rates(name, value))) for name, value in given.items()}
        clean = None if clean is None else float(_rates("clean_error", clean).mean())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a baseline of corruption errors: {error}. {expected}"
        ) from error
    return Baseline(str(content.get("name") or path), path, clean, errors)


def _rates(name, value):
    rates = np.atleast_1d(np.asarray(value, np.float64))
    known = name == "clean_error" or name in CORRUPTIONS
    if not known or rates.shape not in ((1,), (len(SEVERITIES),)):
        raise ValueError(f"{name} is not a corruption with one or five error rates")
    if not (np.isfinite(rates).all() and rates.min() >= 0 and rates.max() <= 1):
        raise ValueError(f"the error rates of {name} are not between 0 and 1: {value}")
    return rates


def corruption_errors(
    errors: Mapping[str, Sequence[float]], clean_error: float, baseline: Baseline
) -> dict:
    """Computes CE and relative CE of each corruption, mCE and relative mCE.

    Args:
        errors: The error rates at the five severities by corruption, 0 to 1.
        clean_error: On the test images as they are, 0 to 1.
        baseline: What to divide by.

    Returns:
        mce, relative_mce, and corruption_errors and relative_corruption_errors by corruption, in
        percent; corruptions, those that are in both. None where the baseline has no errors, or
        where its relative error is not above 0.
    """
    shared = [name for name in CORRUPTIONS if name in errors and name in baseline.errors]
    absolute: dict[str, float | None] = {}
    relative: dict[str, float | None] = {}
    for name in shared:
        mean = float(np.mean(errors[name]))
        absolute[name] = _percent(mean, baseline.errors[name])
        if baseline.clean_error is not None:
            rise = baseline.errors[name] - baseline.clean_error
            relative[name] = _percent(mean - clean_error, rise)
    return {
        "mce": _mean_of_all(absolute),
        "relative_mce": _mean_of_all(relative),
        "corruption_errors": absolute,
        "relative_corruption_errors": relative,
        "corruptions": shared,
    }


def _percent(value, divisor):
    return 100 * value / divisor if divisor > 0 else None


def _mean_of_all(values):
    """The mean, or None without values or if one is undefined: it would be of other corruptions."""
    if not values or None in values.values():
        return None
    return float(np.mean(list(values.values())))
