"""The classifier on corrupted images: accuracy and calibration by severity and by corruption."""

from __future__ import annotations

from supcon_tf.report.content import ReportData, Section
from supcon_tf.report.figures import line_chart, with_table
from supcon_tf.report.markup import joined, paragraphs, table


def robustness_section(data: ReportData) -> Section | None:
    """Shows what --mode=robustness measured; None if it was not run."""
    found = data.robustness
    if not found:
        return None
    severities = [row["severity"] for row in found["severities"]]
    rows = [
        (row["severity"], f"{row['top_1']:.4f}", f"{row['expected_calibration_error']:.4f}")
        for row in found["severities"]
    ]
    lines = [
        (title, severities, [row[name] for row in found["severities"]])
        for name, title in (
            ("top_1", "top-1 accuracy"),
            ("expected_calibration_error", "expected calibration error"),
        )
    ]
    chart = line_chart(lines, x_label="severity", y_label="mean", y_range=(0.0, 1.0))
    body = [
        *paragraphs(*_sentences(found)),
        with_table(
            "Accuracy and calibration by severity",
            "Means over the corruptions that were run. Severity 0: the images as they are.",
            chart,
            ("Severity", "Top-1", "Calibration error"),
            rows,
        ),
        table(
            ("Corruption", *(f"Severity {s}" for s in severities[1:]), "Mean"),
            [
                (
                    name.replace("_", " "),
                    *(f"{1 - error:.3f}" for error in errors),
                    f"{1 - sum(errors) / len(errors):.3f}",
                )
                for name, errors in found["errors"].items()
            ],
            caption="Top-1 accuracy by corruption",
        ),
    ]
    return Section("robustness", "Corrupted images", joined(body))


def _sentences(found):
    low, high = found["intervals_95"]["mean_corruption_accuracy"]
    yield (
        f"{found['num_examples']:,} of {found['num_test_examples']:,} test images: top-1 "
        f"{found['mean_corruption_accuracy']:.4f} (95% interval {low:.4f} to {high:.4f}) over "
        f"{len(found['errors'])} corruptions with five severities each, "
        f"{1 - found['clean_error']:.4f} without corruption."
    )
    baseline = found.get("baseline")
    if baseline and baseline["mce"] is not None:
        relative = baseline["relative_mce"]
        text = "" if relative is None else f", relative mCE {relative:.1f}"
        yield (
            f"mCE {baseline['mce']:.1f}{text}, over {len(baseline['corruptions'])} corruptions "
            f"({baseline['name']} is 100; lower is better)."
        )
    if found["not_run"]:
        reasons = "; ".join(
            f"{name.replace('_', ' ')} ({reason})" for name, reason in found["not_run"].items()
        )
        yield f"Not run: {reasons}."
