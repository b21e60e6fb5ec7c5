"""HTML from plain values: everything that is not `Html` already is escaped."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# Elements without content and without an end tag.
VOID = ("br", "img", "input", "meta", "link", "hr")


class Html(str):
    """Text that is HTML already. `tag` inserts it unchanged and escapes every other text."""


def escaped(value: Any) -> Html:
    """Returns a value as text in HTML; `Html` is returned unchanged.

    Control characters are shown as their escapes, and so are the bytes of a file name that is not
    valid UTF-8.
    """
    if isinstance(value, Html):
        return value
    text = "".join(
        character if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
        else ascii(character)[1:-1]
        for character in str(value)
    )  # fmt: skip
    return Html(html.escape(text))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Returns an element.

    Args:
        name: Of the element.
        children: Its content. Lists are flattened and None is left out.
        attributes: `class_` is written as `class`, and underscores as hyphens. None or False
            leaves an attribute out; True writes it without a value.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{escaped(value)}"')
    start = f"<{' '.join(parts)}>"
    return Html(start if name in VOID else f"{start}{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Html:
    """Concatenates texts and elements; lists are flattened and None is left out."""
    found = []
    for child in children:
        if child is None:
            continue
        is_list = isinstance(child, (list, tuple))
        found.append(joined(child) if is_list else escaped(child))
    return Html("".join(found))


def name_of(value: Any) -> Html:
    """Returns a name from the data, isolated so that its direction of writing stays its own."""
    return tag("bdi", value)


def table(
    columns: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: Any, class_: str = ""
) -> Html:
    """Returns a table whose first column holds the headers of the rows.

    Args:
        columns: The header of each column.
        rows: The cells of each row. Numbers are aligned to the right.
        caption: What the table shows.
        class_: A class of the style sheet.
    """
    head = tag("tr", [tag("th", column, scope="col") for column in columns])
    body = [
        tag("tr", tag("th", row[0], scope="row"), [_cell(value) for value in row[1:]])
        for row in rows
    ]
    content = tag(
        "table", tag("caption", caption), tag("thead", head), tag("tbody", body),
        class_=class_ or None,
    )  # fmt: skip
    # A wide table scrolls by itself; a scrolling area must be reachable with the keyboard.
    return tag("div", content, class_="scroll", tabindex=0, role="group", aria_label=caption)


def _cell(value):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    text = number(value) if is_number else value
    return tag("td", text, class_="number" if is_number else None)


def number(value: float | int | None, digits: int = 4) -> str:
    """Returns a number as text with this many digits after the point; small ones in short form."""
    if value is None:
        return "undefined"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.{digits}f}" if abs(value) >= 0.001 else f"{value:.3g}"


def percent(value: float, digits: int = 1) -> str:
    """Returns a fraction as a percentage."""
    return f"{100 * value:.{digits}f}%"


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """Returns a fraction as a percentage, with its interval in brackets if there is one."""
    if not interval:
        return percent(value)
    return f"{percent(value)} [{percent(interval[0])}, {percent(interval[1])}]"


def details(summary: Any, *children: Any) -> Html:
    """Returns content that is closed until the reader opens it."""
    return tag("details", tag("summary", summary), *children)


def paragraphs(*texts: Any) -> list[Html]:
    """Returns one paragraph per text."""
    return [tag("p", text) for text in texts if text]


def facts_list(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Returns names with their values."""
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in pairs])


def file_name(name: object) -> str:
    """Returns the last two parts of a path, or the number of an example."""
    text = str(name)
    return f"example {text}" if text.isdigit() else "/".join(text.split("/")[-2:])
