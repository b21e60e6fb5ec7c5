"""The page of the report, built from made-up data: its parts, its names, its numbers."""

import dataclasses
import re

import numpy as np
import pytest
from helpers import made_up_report as made_up
from helpers.page_reader import read_page

from supcon_tf.evaluation import metrics
from supcon_tf.report import content, embedding_maps, embedding_section, page, pictures
from supcon_tf.report.comparison_section import paired_difference
from supcon_tf.report.markup import escaped, number, tag
from supcon_tf.report.result_section import reliability
from supcon_tf.report.training_section import describe_training


@pytest.fixture(scope="module")
def text():
    predictions = made_up.made_up_predictions()
    other = made_up.made_up_predictions(seed=1)
    image = made_up.made_up_images(1)[0]
    finding = content.Finding(
        "leak", made_up.NASTY, "test", "0.99", "b.png", f"label {made_up.NASTY}", "", image, None
    )
    runs = [
        content.OtherRun(name, [made_up.NASTY], made_up.made_up_figures(p), p, lines, 3.0)
        for name, p, lines in (("a", predictions, made_up.made_up_lines()), ("b", other, []))
    ]
    inspection = content.Inspection({"leak": 1}, [finding], {"num_images": 5}, "inspect/issues.csv")
    return page.create_report(made_up.made_up_report(inspection=inspection, comparison=runs))


@pytest.fixture(scope="module")
def top(text):
    return read_page(text)


# Structure.


def test_every_section_is_there_and_linked(top):
    sections = [section.attributes["id"] for section in top.all("section")]
    assert sections == [*made_up.SECTIONS, "inspection", "comparison"]
    links = [a.attributes["href"] for nav in top.all("nav") for a in nav.all("a")]
    assert links == [f"#{section}" for section in sections]
    assert len(page.SECTIONS) == len(sections)


def test_headings_are_in_order(top):
    levels = [int(e.name[1]) for e in top.all() if re.fullmatch("h[1-6]", e.name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(new <= old + 1 for old, new in zip(levels, levels[1:], strict=False))


def test_the_page_has_language_title_and_skip_link(top):
    (html,) = top.all("html")
    assert html.attributes["lang"] == "en"
    assert made_up.NASTY in next(top.all("title")).text
    first = next(e for e in top.all("a"))
    assert first.attributes == {"href": "#main", "class": "skip"}
    assert top.find("main").name == "main"


def test_ids_are_unique(top):
    ids = [e.attributes["id"] for e in top.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))


def test_every_figure_has_title_description_and_table(top):
    figures = [f for f in top.all("figure") if f.attributes.get("class") != "tile"]
    assert len(figures) >= 12
    for figure in figures:
        (caption,) = [e for e in figure.all("figcaption") if e.parent is figure]
        assert len(next(caption.all("strong")).text) > 3
        assert len(next(caption.all("p")).text) > 20
        (details,) = list(figure.all("details"))
        assert list(details.all("tr"))[1:], next(caption.all("strong")).text
        assert next(figure.all("svg")).attributes["aria-hidden"] == "true"


def test_tables_name_their_headers(top):
    for table in top.all("table"):
        assert next(table.all("caption")).text
        (head,) = table.all("thead")
        assert {th.attributes["scope"] for th in head.all("th")} == {"col"}
        for row in next(table.all("tbody")).all("tr"):
            assert [th.attributes["scope"] for th in row.all("th")] == ["row"]


def test_images_have_a_text(top):
    images = [image for image in top.all("img") if image.attributes["src"]]
    assert len(images) > 30
    sheet = top.find("explorer-sheet")
    assert all(image.attributes["alt"] for image in images if image is not sheet)
    assert sheet.parent.attributes["role"] == "img" and sheet.parent.attributes["aria-label"]


# Nothing runs or is loaded.


def test_the_page_refers_to_nothing_outside(top):
    for element in top.all():
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            value = element.attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (element.name, value)
        assert not [name for name in element.attributes if name.startswith("on")]
    styles = "".join(style.text for style in top.all("style"))
    assert "@import" not in styles and "url(" not in styles


def test_names_are_text(top, text):
    scripts = [script.attributes.get("type") for script in top.all("script")]
    assert scripts == ["application/json", None]
    assert "alert('x')</script>" not in text and "<script>alert" not in text
    shown = [bdi.text for bdi in top.all("bdi")]
    for name in made_up.CLASS_NAMES:
        assert name in shown


def test_the_policy_of_the_page_names_its_script(top):
    import base64
    import hashlib

    (policy,) = [
        meta.attributes["content"] for meta in top.all("meta") if "http-equiv" in meta.attributes
    ]
    script = list(top.all("script"))[-1].text
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


@pytest.mark.parametrize(
    "value,expected",
    [
        ("<b> & \"'", "&lt;b&gt; &amp; &quot;&#x27;"),
        ("a\x07b\udc80", "a\\x07b\\udc80"),
        ("猫 é", "猫 é"),
    ],
)
def test_text_is_escaped(value, expected):
    assert escaped(value) == expected
    assert tag("p", value, title=value) == f'<p title="{expected}">{expected}</p>'


def test_svg_colors_come_from_the_style_sheet(top):
    style = "".join(e.text for e in top.all("style"))
    for svg in top.all("svg"):
        for element in svg.all():
            found = element.attributes.get("style", "")
            assert not re.search(r"(fill|stroke): #", found), found
            for variable in re.findall(r"var\((--[\w-]+)\)", found):
                assert f"{variable}:" in style


# Numbers.


def test_reliability_bins_add_up_to_the_calibration_error():
    predictions = made_up.made_up_predictions()
    confidence = predictions.probabilities.astype(float).max(axis=1)
    rows = reliability(confidence, predictions.is_correct())
    assert sum(row[2] for row in rows) == len(confidence)
    error = sum(row[2] * abs(row[3] - row[4]) for row in rows) / len(confidence)
    expected = metrics.expected_calibration_error(
        predictions.log_probabilities(), predictions.labels
    )
    assert error == pytest.approx(expected, abs=1e-6)


def test_pairs_are_counted_once():
    embeddings = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], np.float32)
    edges = np.linspace(-1, 1, 5)
    found = embedding_section.pair_histograms(embeddings, np.array([0, 0, 1, 1]), edges)
    # Positives: cosines 1 and 0. Negatives: 0 and -1, twice each.
    np.testing.assert_allclose(found["positives"], [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(found["negatives"], [0.5, 0, 0.5, 0])


def test_mistakes_are_sorted_by_their_probability(top):
    section = top.find("result")
    headings = [e for e in section.all() if e.name == "h3"]
    assert "Most confident mistakes" in [heading.text for heading in headings]
    percents = [
        float(value)
        for figure in list(section.all("figure"))[-12:]
        for value in re.findall(r"([\d.]+)%", figure.text)
    ]
    assert len(percents) == 12 and percents == sorted(percents, reverse=True)


def test_paired_difference_uses_the_images_of_both():
    first = made_up.made_up_predictions()
    order = np.random.default_rng(0).permutation(len(first.labels))[:50]
    better = np.eye(len(made_up.CLASS_NAMES), dtype=np.float32)[first.labels]
    second = dataclasses.replace(
        first, labels=first.labels[order], probabilities=better[order], names=first.names[order]
    )
    runs = [content.OtherRun(n, [], {}, p, [], None) for n, p in (("a", first), ("b", second))]
    found = paired_difference(*runs)
    assert found.num_examples == 50
    assert found.difference.difference == pytest.approx(1 - first.is_correct()[order].mean())
    assert found.difference.low > 0


def test_runs_on_other_images_cannot_be_compared():
    first = made_up.made_up_predictions()
    other = dataclasses.replace(first, names=np.array([f"{i}.jpg" for i in range(120)]))
    runs = [content.OtherRun(n, [], {}, p, [], None) for n, p in (("a", first), ("b", other))]
    with pytest.raises(ValueError, match="different images"):
        paired_difference(*runs)
    with pytest.raises(ValueError, match="b has no .*--mode=eval"):
        paired_difference(runs[0], dataclasses.replace(runs[1], predictions=None))


def log(stage="pretrain", lines=None, result=None, still_improving=None):
    lines = made_up.made_up_lines() if lines is None else lines
    return content.StageLog(stage, lines, {"top_1": 0.8} if result is None else result,
                            still_improving)  # fmt: skip


def trained(accuracy):
    return [{"step": step, "accuracy": accuracy, "learning_rate": 0.1} for step in (1, 2)]


def fitted(accuracy):
    return [{"step": 64, "accuracy": accuracy, "loss": 0.2}]


@pytest.mark.parametrize(
    "given,expected",
    [
        (log(), "no longer improving"),
        (log(still_improving="k-NN rose"), "Still improving.*k-NN rose"),
        (log(lines=made_up.made_up_lines(negatives=0.99)), "Collapsed"),
        (log(lines=[{"step": 1, "loss": 1, "collapse_ratio": 1.0}]), "Collapsed"),
        (log(lines=[{"step": 1, "loss": float("nan")}]), "not finite"),
        (log(result={}), "unfinished.*300"),
        (log("linear", trained(0.95)), "^Overfitting: .*95.0% on training batches.*80.0%.*epochs"),
        (log("linear", trained(0.85)), "^No overfitting"),
        (log("linear", fitted(0.95)), "no curves.* Overfitting: .*95.0% on training images.*80.0%"),
        (log("linear", fitted(0.85)), "no curves.* No overfitting"),
        (log("linear", []), "no curves"),
    ],
)
def test_the_curves_are_put_into_words(given, expected):
    assert re.search(expected, " ".join(describe_training(given)))


# Other kinds of runs.


def test_missing_parts_say_why_and_how_to_make_them():
    missing = {
        "result": ("The run has no classifier yet.", "python --mode=linear"),
        "embedding": ("There is no encoder.", None),
        "input": ("No data.", None),
    }
    data = made_up.made_up_report(
        result=None, embedding=None, input=None, training=(), missing=missing
    )
    top = read_page(page.create_report(data))
    assert [section.attributes["id"] for section in top.all("section")] == [*made_up.SECTIONS]
    for part, (reason, command) in missing.items():
        assert reason in top.find(part).text
        assert command is None or command in top.find(part).text
    assert not [e for e in top.all() if e.attributes.get("id") == "explorer"]


def test_several_labels_per_image():
    random = np.random.default_rng(0)
    labels = random.random([60, 6]) < 0.3
    labels[0] = False
    probabilities = np.where(labels, 0.8, 0.2).astype(np.float32)
    probabilities[5, 0] = 0.97 if not labels[5, 0] else 0.03
    names = np.arange(60)
    full = made_up.made_up_report()
    predictions = dataclasses.replace(
        full.result.predictions, labels=labels, probabilities=probabilities, names=names
    )
    figures = {"mean_average_precision": 0.9, "average_precision": {"猫": 0.75, "Käfer": None}}
    embedding = dataclasses.replace(
        full.embedding, embeddings=full.embedding.embeddings[:60], labels=labels,
        predicted=probabilities > 0.5, images=full.embedding.images[:60],
        names=list(map(str, names)),
    )  # fmt: skip
    result = dataclasses.replace(full.result, figures=figures, predictions=predictions)
    data = dataclasses.replace(full, result=result, embedding=embedding)
    top = read_page(page.create_report(data))
    assert "Mean average precision" in top.find("result").text
    assert "0.7500" in top.find("result").text
    mistakes = [f.text for f in top.find("result").all("figure")]
    assert len(mistakes) == 1 and "example 5" in mistakes[0]
    assert "none" in [li.text.strip() for li in top.find("embedding").all("li")]


def test_predicted_numbers():
    full = made_up.made_up_report()
    labels = np.linspace(0, 5, 60)
    predicted = labels + np.where(np.arange(60) == 7, 3.0, 0.1)
    targets = content.Targets(labels, predicted, np.arange(60))
    figures = {"mean_absolute_error": 0.15, "r2": 0.9, "intervals_95": {"r2": [0.8, 0.95]}}
    result = dataclasses.replace(full.result, figures=figures, predictions=targets)
    data = dataclasses.replace(full, result=result, embedding=None)
    section = read_page(page.create_report(data)).find("result")
    assert "0.9000 [0.8000, 0.9500]" in section.text
    tiles = [figure.text for figure in section.all("figure") if "predicted" in figure.text]
    assert "example 7" in tiles[0]


def test_images_without_classes():
    full = made_up.made_up_report()
    embedding = dataclasses.replace(full.embedding, labels=None, predicted=None, class_names=())
    data = dataclasses.replace(full, result=None, embedding=embedding)
    top = read_page(page.create_report(data))
    assert "Map of the embeddings by t-SNE" in top.find("embedding").text


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
def test_few_images(count):
    full = made_up.made_up_report()
    found = full.embedding
    embedding = dataclasses.replace(
        found, embeddings=found.embeddings[:count], labels=found.labels[:count],
        names=found.names[:count], images=found.images[:count], predicted=None, before=None,
        before_rows=None,
    )  # fmt: skip
    section = embedding_section.embedding_section(
        dataclasses.replace(full, embedding=embedding, result=None)
    )
    assert ("Map of the embeddings" in section.body) == (count >= embedding_maps.MIN_EXAMPLES)


def test_a_collapsed_encoder_has_a_map():
    maps = embedding_maps.project(np.ones([20, 8], np.float32))
    assert np.isfinite(maps.pca).all() and np.isfinite(maps.tsne).all()


def test_the_same_data_gives_the_same_map():
    embeddings = np.random.default_rng(0).normal(size=[60, 8])
    first, second = (embedding_maps.project(embeddings, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.tsne, second.tsne)
    assert first.tsne.min() >= 0 and first.tsne[:, 0].max() <= embedding_maps.WIDTH


def test_a_sprite_sheet_holds_every_image_in_its_place():
    import base64
    import io

    from PIL import Image

    images = np.stack([np.full([16, 16, 3], 10 * i, np.uint8) for i in range(7)])
    uri, side, columns = pictures.sprite_sheet(images)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    for index in range(7):
        row, column = divmod(index, columns)
        tile = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert abs(tile.mean() - 10 * index) < 2


@pytest.mark.parametrize(
    "value,expected",
    [(None, "undefined"), (1437, "1,437"), (0.25, "0.2500"), (1e-5, "1e-05"), (2.0, "2")],
)
def test_numbers_as_text(value, expected):
    assert number(value) == expected
