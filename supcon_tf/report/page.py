"""The page: one HTML file that needs no network, with every section in order."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from supcon_tf.report.comparison_section import comparison_section
from supcon_tf.report.content import ReportData, Section
from supcon_tf.report.embedding_section import embedding_section
from supcon_tf.report.input_section import input_section
from supcon_tf.report.inspection_section import inspection_section
from supcon_tf.report.markup import Html, name_of, tag
from supcon_tf.report.result_section import result_section
from supcon_tf.report.robustness_section import robustness_section
from supcon_tf.report.run_section import run_section
from supcon_tf.report.training_section import training_section

# Every section of the page, in order. To add one, write a function of this form and list it here;
# it returns None if there is nothing to show.
SECTIONS: tuple[Callable[[ReportData], Section | None], ...] = (
    run_section,
    training_section,
    result_section,
    robustness_section,
    embedding_section,
    input_section,
    inspection_section,
    comparison_section,
)
HERE = Path(__file__).parent


def create_report(data: ReportData) -> str:
    """Returns the whole page as HTML.

    The page names a policy that forbids the browser every request and every script but the one of
    `page.js`, so that nothing that a name or an image contains can run or load anything.
    """
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    sections = [section for create in SECTIONS if (section := create(data)) is not None]
    title = f"Report of {data.facts.model_dir}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        f"form-action 'none'; script-src 'sha256-{digest}'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        Html(f"<style>{style}</style>"),
    )
    links = [tag("li", tag("a", section.title, href=f"#{section.anchor}")) for section in sections]
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#main", class_="skip"),
        tag("header", tag("h1", "Report of ", name_of(data.facts.model_dir)), class_="page"),
        tag("nav", tag("ul", links), aria_label="Sections"),
        tag("main", [_section_html(section) for section in sections], id="main"),
        Html(f"<script>{script}</script>"),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _section_html(section):
    heading = f"{section.anchor}-title"
    return tag(
        "section", tag("h2", section.title, id=heading), section.body, id=section.anchor,
        aria_labelledby=heading,
    )  # fmt: skip
