"""What --mode=inspect found in the data, with the images."""

from __future__ import annotations

from supcon_tf.report.content import Finding, ReportData, Section
from supcon_tf.report.markup import file_name, joined, name_of, paragraphs, table, tag
from supcon_tf.report.pictures import thumbnail, tiles

MAX_EVIDENCE = 110
MEANINGS = {
    "mislabeled": "The label seems to be wrong.",
    "contradiction": "Duplicates with different labels.",
    "duplicate": "The same image twice in one split.",
    "leak": "A test image that is also a training image.",
    "outlier": "Unlike the other images, of its class or of all classes.",
    "odd_image": "Broken, blank, or of an unusual size or shape.",
    "imbalance": "A class with far fewer images than others.",
}


def inspection_section(data: ReportData) -> Section | None:
    """Shows the worst findings of each kind; None if the data was not inspected."""
    found = data.inspection
    if found is None:
        return None
    rows = [(kind, count, MEANINGS.get(kind, "")) for kind, count in found.counts.items()]
    body = [
        *paragraphs(
            joined([
                "All findings are in ", tag("code", name_of(found.path)), ". Fill in its column ",
                tag("code", "confirmed"), " and train without the confirmed rows with ",
                tag("code", f"--exclude={found.path}"), ".",
            ])
        ),
        table(("Kind", "Findings", "Meaning"), rows, caption="Findings by kind"),
    ]  # fmt: skip
    for kind in found.counts:
        worst = [finding for finding in found.worst if finding.kind == kind]
        if worst:
            body += [tag("h3", f"Worst findings: {kind}"), tiles(_tiles(worst))]
    if found.figures:
        values = list(found.figures.items())
        body.append(table(("Figure", "Value"), values, caption="Figures of the inspection"))
    return Section("inspection", "Inspection", joined(body))


def _first_words(text: str) -> str:
    """Returns the start of the evidence; the file has all of it."""
    return text if len(text) <= MAX_EVIDENCE else f"{text[:MAX_EVIDENCE].rsplit(' ', 1)[0]} …"


def _tiles(findings: list[Finding]):
    items = []
    for finding in findings:
        text = joined([
            f"score {finding.score}", tag("br"), _first_words(finding.evidence), tag("br"),
            tag("small", name_of(file_name(finding.file)), f" ({finding.split})"),
        ])  # fmt: skip
        items.append(thumbnail(finding.image, f"Image {file_name(finding.file)}", text))
        if finding.other_file:
            other = file_name(finding.other_file)
            text = joined(["compared with the image to its left", tag("br"),
                           tag("small", name_of(other))])  # fmt: skip
            items.append(thumbnail(finding.other_image, f"Image {other}", text))
    return items
