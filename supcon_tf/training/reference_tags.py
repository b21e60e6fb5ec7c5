"""The TensorBoard tags of the code that the authors of the paper released.

They are written beside our own, so that the curves of a run lie over those of the released code.
Names and meanings are those of `_add_scalar_summary` and `eval_metrics` in
https://github.com/google-research/google-research/blob/master/supcon/launcher.py. Its tags of
quantities that are not measured here, `top_5_accuracy` of the training batches and `weight_decay/`,
are not written.
"""

from __future__ import annotations

CONTRASTIVE_LOSS, CROSS_ENTROPY = "loss/contrastive_loss", "loss/cross_entropy_loss"
TOP_1, TOP_5 = "top_1_accuracy", "top_5_accuracy"
EPOCH = "current_epoch"
# The released code trains the encoder in stage 1 and the classifier in stage 2.
LEARNING_RATES = {1: "stage_1_learning_rate", 2: "stage_2_learning_rate"}
REFERENCE_TAGS = frozenset(
    {CONTRASTIVE_LOSS, CROSS_ENTROPY, TOP_1, TOP_5, EPOCH, *LEARNING_RATES.values()}
)


def reference_scalars(metrics: dict[str, float], stage: str) -> dict[str, float]:
    """Returns the logged metrics of a training step under the names of the released code.

    Args:
        metrics: What `metrics.jsonl` holds of a step.
        stage: "pretrain", which is stage 1 there; any other name is stage 2.
    """
    is_pretraining = stage == "pretrain"
    found = {
        TOP_1: metrics.get("accuracy"),
        EPOCH: metrics.get("epoch"),
        LEARNING_RATES[1 if is_pretraining else 2]: metrics.get("learning_rate"),
    }
    if "contrastive_loss" in metrics:  # Both losses together.
        found[CONTRASTIVE_LOSS] = metrics["contrastive_loss"]
        found[CROSS_ENTROPY] = metrics.get("cross_entropy")
    elif is_pretraining and "accuracy" not in metrics:
        found[CONTRASTIVE_LOSS] = metrics.get("loss")
    elif "accuracy" in metrics:  # A classifier with cross-entropy alone.
        found[CROSS_ENTROPY] = metrics.get("loss")
    return {tag: value for tag, value in found.items() if value is not None}


def reference_eval_scalars(figures: dict) -> dict[str, float]:
    """Returns the figures of an evaluation under the names of the released code."""
    found = {TOP_1: figures.get("top_1"), TOP_5: figures.get("top_5")}
    return {tag: value for tag, value in found.items() if value is not None}
