"""Maps of the embeddings, nearest neighbors, and similarities before and after training."""

from __future__ import annotations

import json

import numpy as np

from supcon_tf.evaluation import geometry, retrieval
from supcon_tf.report import embedding_maps
from supcon_tf.report.content import Embedding, ReportData, Section
from supcon_tf.report.figures import LINES, SERIES, as_svg, drawing, with_table
from supcon_tf.report.markup import Html, file_name, joined, name_of, table, tag
from supcon_tf.report.pictures import sprite_sheet, thumbnail, tiles
from supcon_tf.report.result_section import missing_part

NUM_QUERIES, NUM_NEIGHBORS = 6, 6
NUM_BINS = 50
# Pairs are drawn from at most this many embeddings.
MAX_SIMILARITY_EXAMPLES = 2_000


def embedding_section(data: ReportData) -> Section:
    """Shows where the encoder puts test images, or why that is missing."""
    found = data.embedding
    if found is None:
        return Section("embedding", "Embedding", missing_part(data, "embedding"))
    which = f"all {len(found.embeddings):,}"
    if found.num_examples > len(found.embeddings):
        which = f"{len(found.embeddings):,} of {found.num_examples:,}"
    body = [
        tag("p", f"Embeddings of {which} test images, compared by cosine similarity."),
        _maps(found),
        tag("h3", "Nearest neighbors"), _neighbor_rows(found),
        tag("h3", "Similarities before and after training"), _similarities(found),
    ]  # fmt: skip
    return Section("embedding", "Embedding", joined(body))


# Maps.


def _maps(found):
    maps = embedding_maps.project(found.embeddings, seed=found.seed)
    if maps is None:
        return tag("p", "There are too few images for a map.")
    names = embedding_maps.names_of_classes(found.labels, found.class_names)
    classes = embedding_maps.one_class_each(found.labels, len(found.embeddings))
    wrong = _is_wrong(found)
    parts = []
    for name, title, text in (
        ("pca", "PCA", f"The two directions of largest variance, {maps.explained:.0%} of it."),
        (
            "tsne", "t-SNE",
            "Neighbors stay neighbors; distances between far groups mean little.",
        ),
    ):  # fmt: skip
        points = getattr(maps, name)
        description = f"{text} One mark per test image, with color and shape by class."
        if wrong is not None:
            description += " Rings mark images that the classifier gets wrong."
        parts.append(with_table(
            f"Map of the embeddings by {title}", description,
            embedding_maps.draw_map(name, points, classes, wrong),
            ("Class", "Images", "Wrong", "Mean x", "Mean y", "Spread"),
            _rows_of_classes(points, classes, wrong, names),
            class_="map",
        ))  # fmt: skip
    return joined([
        tag("h3", "Maps"), tag("div", parts, class_="grid maps"),
        tag("details", tag("summary", "Colors and shapes of the classes"),
            embedding_maps.legend(names), open=len(names) <= 20),
        _explorer(found, maps, names, classes),
    ])  # fmt: skip


def _is_wrong(found):
    if found.predicted is None or found.labels is None:
        return None
    if found.labels.ndim == 2:
        return np.any(found.predicted != found.labels, axis=1)
    return found.predicted != found.labels


def _rows_of_classes(points, classes, wrong, names):
    """The map in numbers: for each class how many images, where, and how far apart."""
    rows = []
    for index, name in enumerate(names):
        chosen = classes == index
        if not chosen.any():
            continue
        center = points[chosen].mean(axis=0)
        spread = float(np.sqrt(np.mean(np.sum((points[chosen] - center) ** 2, axis=1))))
        errors = "unknown" if wrong is None else int(wrong[chosen].sum())
        rows.append(
            (name_of(name), int(chosen.sum()), errors, *map(float, center.round(1)), spread)
        )
    return rows


def _explorer(found, maps, names, classes):
    """The interactive panel: a slider through the images, which moves a ring on both maps."""
    sprite, side, columns = sprite_sheet(found.images)
    labels = [_label_of(found, row, found.labels) for row in range(len(classes))]
    predicted = [_label_of(found, row, found.predicted) for row in range(len(classes))]
    content = {
        "pca": maps.pca.round(1).tolist(), "tsne": maps.tsne.round(1).tolist(),
        "names": [file_name(name) for name in found.names],
        "labels": labels, "predicted": predicted, "side": side, "columns": columns,
    }  # fmt: skip
    count = len(classes)
    picture = tag(
        "div", tag("img", id="explorer-sheet", src=sprite, alt=""),
        id="explorer-image", role="img", aria_label="Selected test image",
    )  # fmt: skip
    controls = [
        tag("label", "Test image ", tag("span", f"1 of {count:,}", id="explorer-number"),
            for_="explorer-slider"),
        tag("input", id="explorer-slider", type="range", min=0, max=count - 1, value=0, step=1),
        tag("label", tag("input", id="explorer-errors", type="checkbox"),
            " Step through wrong predictions only")
        if found.predicted is not None and found.labels is not None else None,
    ]  # fmt: skip
    text = tag("div", id="explorer-text", aria_live="polite")
    data = json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")
    return tag(
        "div",
        tag("h4", "Look at single images", id="explorer-title"),
        tag("p", "Point at a mark on a map, or move the slider with the mouse or the arrow keys."),
        tag("div", picture, tag("div", controls, text, class_="explorer-controls"),
            class_="explorer-row"),
        Html(f'<script type="application/json" id="explorer-data">{data}</script>'),
        class_="explorer", role="group", aria_labelledby="explorer-title", hidden=True,
        id="explorer",
    )  # fmt: skip


def _label_of(found: Embedding, row: int, labels: np.ndarray | None) -> str | None:
    if labels is None:
        return None
    if labels.ndim == 2:
        present = [found.class_names[index] for index in np.flatnonzero(labels[row])]
        return ", ".join(present) or "none"
    return found.class_names[labels[row]]


# Neighbors.


def _neighbor_rows(found):
    """The most similar other images of a few images, one per class as far as that goes."""
    count = len(found.embeddings)
    if count < 2:
        return tag("p", "There are too few images.")
    queries = _queries(found)
    k = min(NUM_NEIGHBORS + 1, count)
    indices, cosines = retrieval.nearest(found.embeddings[queries], found.embeddings, k)
    rows = []
    for query, near, values in zip(queries, indices, cosines, strict=True):
        others = [(n, c) for n, c in zip(near, values, strict=True) if n != query]
        items = [_neighbor(found, query, "the image")] + [
            _neighbor(found, index, f"cosine {cosine:.3f}", query)
            for index, cosine in others[:NUM_NEIGHBORS]
        ]
        rows.append(tiles(items))
    text = (
        "Each row starts with a test image and shows the most similar other test images on the "
        "map. Neighbors with another label are marked with ≠."
    )
    return joined([tag("p", text), *rows])


def _queries(found) -> np.ndarray:
    classes = embedding_maps.one_class_each(found.labels, len(found.embeddings))
    first = np.sort(np.unique(classes, return_index=True)[1])
    if len(first) < NUM_QUERIES:
        rest = np.setdiff1d(np.arange(len(classes)), first)
        first = np.concatenate([first, rest])
    step = max(1, len(first) // NUM_QUERIES) if found.labels is not None else 1
    return first[::step][:NUM_QUERIES]


def _neighbor(found, row, what, query=None):
    lines = [what]
    if found.labels is not None:
        label = name_of(_label_of(found, row, found.labels))
        is_other = query is not None and not _share_class(found.labels, row, query)
        lines = [joined(["≠ " if is_other else "", label]), what]
    name = file_name(found.names[row])
    caption = joined([lines[0], tag("br"), *lines[1:], tag("br") if lines[1:] else None,
                      tag("small", name_of(name))])  # fmt: skip
    return thumbnail(found.images[row], f"Test image {name}", caption)


def _share_class(labels, row, other):
    if labels.ndim == 2:
        return bool(np.any(labels[row] & labels[other]))
    return labels[row] == labels[other]


# Similarities.


def _similarities(found):
    if found.labels is None:
        return tag("p", "Without classes there are no positive and negative pairs.")
    rows = np.arange(len(found.embeddings))
    if len(rows) > MAX_SIMILARITY_EXAMPLES:
        rows = np.linspace(0, len(rows) - 1, MAX_SIMILARITY_EXAMPLES).astype(int)
    states = [("after training", found.embeddings[rows], found.labels[rows])]
    if found.before is not None and found.before_rows is not None:
        # The same images before and after.
        labels = found.labels[found.before_rows]
        states = [
            ("before training", found.before, labels),
            ("after training", found.embeddings[found.before_rows], labels),
        ]
    states = [state for state in states if len(state[1]) >= 2]
    if not states:
        return tag("p", "There are too few images to compare.")
    edges = histogram_edges([x for _, x, _ in states])
    histograms = {name: pair_histograms(x, y, edges) for name, x, y in states}
    return joined([_histogram_figure(histograms, edges, found), _geometry(states)])


def histogram_edges(groups: list[np.ndarray]) -> np.ndarray:
    """Returns the edges of equal bins from about the smallest cosines of any group to 1."""
    units = [retrieval.unit_norm(embeddings) for embeddings in groups]
    low = min(float(np.quantile(unit @ unit.T, 0.001)) for unit in units)
    return np.linspace(max(-1.0, np.floor(20 * low) / 20), 1, NUM_BINS + 1)


def pair_histograms(
    embeddings: np.ndarray, labels: np.ndarray, edges: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the share of pairs of the same class and of different classes per bin of the cosine.

    Args:
        embeddings: [M, F].
        labels: int [M] or multi-hot [M, C].
        edges: Of the bins, ascending; values outside count in the first or last bin.

    Returns:
        "positives" and "negatives", the share of the pairs of that kind in each bin; a kind
        without pairs is left out.
    """
    unit = retrieval.unit_norm(embeddings)
    num_bins = len(edges) - 1
    counts = {True: np.zeros(num_bins), False: np.zeros(num_bins)}
    for start, stop in retrieval.row_blocks(len(unit), len(unit)):
        cosine = unit[start:stop] @ unit[start:].T
        is_pair = np.triu(np.ones(cosine.shape, bool), 1)
        is_same = retrieval.relevance(labels[start:stop], labels[start:])
        bins = np.clip(np.searchsorted(edges, cosine, side="right") - 1, 0, num_bins - 1)
        for same in (True, False):
            counts[same] += np.bincount(bins[is_pair & (is_same == same)], minlength=num_bins)
    named = {"positives": counts[True], "negatives": counts[False]}
    return {name: found / found.sum() for name, found in named.items() if found.sum()}


def _histogram_figure(histograms, edges, found):
    used = np.zeros(NUM_BINS, bool)
    with drawing(4.2 * len(histograms), 2.8, len(histograms)) as (figure, all_axes):
        for axes, (state, shares) in zip(np.atleast_1d(all_axes), histograms.items(), strict=True):
            for index, (name, values) in enumerate(shares.items()):
                axes.stairs(values, edges, fill=True, alpha=0.25, color=SERIES[index], linewidth=0)
                axes.stairs(
                    values, edges, label=name, color=SERIES[index], linestyle=LINES[index],
                    linewidth=1.6,
                )  # fmt: skip
                used |= values > 0
            axes.set(title=state, xlabel="cosine similarity", ylabel="share of pairs")
            axes.set_xlim(edges[0], 1)
            axes.legend(fontsize=8)
        picture = as_svg(figure)
    columns, values = ["Cosine from"], [edges[:-1]]
    for state, shares in histograms.items():
        for name, share in shares.items():
            columns.append(f"{name} {state}")
            values.append(share)
    rows = [
        (f"{row[0]:.2f}", *map(float, row[1:]))
        for row, is_used in zip(zip(*values, strict=True), used, strict=True) if is_used
    ]  # fmt: skip
    text = (
        "Cosine similarities of pairs of the same class (positives) and of different classes "
        "(negatives). Training should move the positives to the right and the negatives to the "
        "left. The first bin also holds smaller values. "
    )
    text += (
        f"Before training is the untrained encoder of the same seed, on the same "
        f"{len(found.before_rows):,} images."
        if "before training" in histograms
        else found.without_before
    )
    return with_table("Similarities of pairs", text, picture, columns, rows)


def _geometry(states):
    rows = []
    figures = {name: geometry.geometry_metrics(x, y) for name, x, y in states}
    for key, title in (
        ("alignment", "Alignment (mean squared distance of positives; lower is closer)"),
        ("uniformity", "Uniformity (lower is more evenly spread)"),
        ("within_class_cosine", "Mean cosine within classes"),
        ("between_class_cosine", "Mean cosine between classes"),
        ("effective_rank", "Effective rank (number of used dimensions)"),
    ):
        values = [found[key] for found in figures.values()]
        rows.append((title, *("undefined" if value is None else value for value in values)))
    return table(("Figure", *figures), rows, caption="Geometry of the embeddings")
