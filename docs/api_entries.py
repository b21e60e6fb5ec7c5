"""The entries of api.md on the site: the docstring of each public name, as Markdown.

The docstrings are plain text with `code`, indented equations, `>>>` examples and the sections
"Args:", "Returns:" and so on. Sphinx' own reader expects reStructuredText, where |x| and * in an
equation mean something else, so the entries are written as Markdown here.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


def write_entries(package: ModuleType) -> str:
    """An entry for each name in the groups of the docstring ("Losses: SupConLoss, ...")."""
    lines = []
    groups = re.findall(r"^(\w+): +(.*(?:\n {4,}.*)*)", inspect.getdoc(package), re.M)
    for group, names in groups:
        lines += [f"## {group}", ""]
        for name in re.findall(r"\w+", names):
            lines += [
                f"### {name}",
                "",
                *_entry(f"{package.__name__}.{name}", getattr(package, name)),
            ]
    return "\n".join(lines)


def _entry(name: str, value: Any) -> Iterator[str]:
    kind = "class" if inspect.isclass(value) else "function"
    yield f"`````{{py:{kind}}} {name}{_signature(value)}"
    yield from _as_markdown(inspect.getdoc(value) or "")
    for method, function in vars(value).items() if kind == "class" else ():
        if inspect.isfunction(function) and not method.startswith("_") and function.__doc__:
            yield f"\n````{{py:method}} {method}{_signature(function, is_method=True)}"
            yield from _as_markdown(inspect.getdoc(function))
            yield "````"
    yield "`````\n"


def _signature(value, is_method=False):
    """The arguments with their defaults; the docstring says what they are."""
    parameters = list(inspect.signature(value).parameters.values())[is_method:]
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain))


def _as_markdown(text: str) -> Iterator[str]:
    for block in re.split(r"\n\n(?=\S)", text):
        title, _, rest = block.partition(":\n")
        if title in SECTIONS:
            yield f"\n**{title}**\n"
            yield from _items(textwrap.dedent(rest))
        elif block.startswith(">>>"):
            yield f"\n```python\n{block}\n```"
        else:
            yield from ["", _with_fences(block)]


def _with_fences(block):
    """A paragraph, with the indented equations or code that follow it in fences."""
    return re.sub(
        r"\n\n((?: {4}.*(?:\n|\Z)|\n(?= {4}))+)",
        lambda match: f"\n\n```text\n{textwrap.dedent(match[1]).strip()}\n```\n",
        block,
    )


def _items(section):
    """The list of a section: "name: what it is", where further lines are indented."""
    items = re.split(r"\n(?=\S)", section.strip("\n"))
    named = [re.fullmatch(r"([\w*, \n.]+): (.*)", item, re.S) for item in items]
    if all(named):
        for match in named:
            name = " ".join(match[1].split())
            yield f"* `{name}`: {' '.join(match[2].split())}"
    else:  # The text of "Returns".
        yield from [_with_fences(section), ""]
