"""Data of a report without any training: names that try to break the page, drawn images."""

import numpy as np

from supcon_tf.evaluation.prediction_files import Predictions
from supcon_tf.report import content

NASTY = "<script>alert('x')</script>"
CLASS_NAMES = (NASTY, "quote \" & '", "Käfer", "猫", "حصان", "$x_1$ and $y$")
# Dark-mode and print colors aside, a page has the same parts whatever the names.
SECTIONS = ("run", "training", "result", "robustness", "embedding", "input")


def made_up_predictions(count=120, seed=0, names=None) -> Predictions:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASS_NAMES)
    logits = random.normal(size=[count, len(CLASS_NAMES)]) + 2 * np.eye(len(CLASS_NAMES))[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if names is None:
        names = np.array([f"test/{CLASS_NAMES[label]}/{i}.png" for i, label in enumerate(labels)])
    return Predictions(labels, probabilities.astype(np.float32), names, CLASS_NAMES)


def made_up_images(count, side=20):
    """Squares of different places and shades."""
    images = np.full([count, side, side, 3], 30, np.uint8)
    for index, image in enumerate(images):
        image[index % 9 : index % 9 + 8, index % 7 : index % 7 + 8] = 90 + index % 150
    return images


def made_up_lines(num=30, *, negatives=0.2):
    return [
        {
            "step": 10 * (i + 1), "loss": 0.5 - 0.01 * i, "collapse_ratio": 1 - 0.02 * i,
            "positive_similarity": 0.9, "negative_similarity": negatives,
            "probe_accuracy": 0.5 + 0.01 * i, "learning_rate": 0.1, "images_per_second": 800.0,
            **({"knn_accuracy": 0.6} if i % 10 == 9 else {}),
        }
        for i in range(num)
    ]  # fmt: skip


def made_up_figures(predictions):
    return {
        "top_1": float(predictions.is_correct().mean()), "num_examples": len(predictions.labels),
        "intervals_95": {"top_1": [0.5, 0.9]}, "data": NASTY,
        "expected_calibration_error": 0.0312,
    }  # fmt: skip


def made_up_robustness():
    """The content of a robustness.json."""
    return {
        "clean_error": 0.1,
        "mean_corruption_accuracy": 0.7,
        "intervals_95": {"mean_corruption_accuracy": [0.65, 0.75]},
        "severities": [
            {"severity": s, "top_1": 0.9 - 0.1 * s, "expected_calibration_error": 0.02 * s}
            for s in range(6)
        ],
        "errors": {"fog": [0.1, 0.2, 0.3, 0.4, 0.5]},
        "not_run": {"frost": NASTY},
        "num_examples": 100,
        "num_test_examples": 120,
        "baseline": {"name": NASTY, "mce": 81.5, "relative_mce": None, "corruptions": ["fog"]},
    }


def made_up_report(**changes) -> content.ReportData:
    """A report with every part; `changes` replaces parts."""
    predictions = made_up_predictions()
    count = len(predictions.labels)
    images, random = made_up_images(count), np.random.default_rng(0)
    embeddings = random.normal(size=[count, 8]) + 4 * np.eye(8)[predictions.labels]
    facts = content.RunFacts(
        model_dir=f"runs/{NASTY}",
        recipe=None,
        changed_flags=[("pretrain", "data_dir", f"/data/{NASTY}", "(not set)")],
        data=[("Dataset", NASTY)],
        environment=[("supcon_tf", "0.1.0")],
        stages=[("pretrain", 300, 12.5, "2026-01-01 10:00 UTC"), ("eval", None, None, None)],
        command=f"python -m supcon_tf.main --data_dir='/data/{NASTY}'",
    )
    linear = [{"step": s, "loss": 0.1, "accuracy": 0.99} for s in range(10, 110, 10)]
    parts = {
        "facts": facts,
        "training": (
            content.StageLog("pretrain", made_up_lines(), {"steps": 300}),
            content.StageLog("linear", linear, {"top_1": 0.8}),
        ),
        "result": content.Result(
            made_up_figures(predictions), predictions, lambda rows: [images[row] for row in rows]
        ),
        "robustness": made_up_robustness(),
        "embedding": content.Embedding(
            embeddings=embeddings.astype(np.float32),
            labels=predictions.labels,
            class_names=CLASS_NAMES,
            names=list(predictions.names),
            images=images,
            predicted=predictions.predicted(),
            before=random.normal(size=[40, 8]).astype(np.float32),
            before_rows=np.arange(40),
            num_examples=10_000,
        ),
        "input": content.InputData(
            views=np.stack([images[:3], images[3:6]], axis=1),
            originals=images[:3],
            labels=CLASS_NAMES[:3],
            operations=[[["brightness 0.1"], []]] * 3,
            policy=[("augmentation_type", "simclr")],
            class_names=CLASS_NAMES,
            class_counts={"train": [60, 50, 40, 30, 20, 10], "test": [20] * 6},
        ),
    }
    return content.ReportData(**{**parts, **changes})
