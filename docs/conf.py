"""The site of docs/: Sphinx, MyST and furo.

.venv/bin/pip install -e '.[docs]'
.venv/bin/sphinx-build -W -b html docs docs/_build

Every page is plain Markdown that a code host shows as it stands. What only the site has is made
here: the table of contents from the lists of index.md, and the entries of api.md from the
docstrings.
"""

import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import api_entries  # noqa: E402

import supcon_tf  # noqa: E402

project = "supcon_tf"
author = "The supcon_tf authors"
project_copyright = author
version = release = supcon_tf.__version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]

myst_heading_anchors = 4
smartquotes = False  # Quotes in the docstrings are Python.
nitpicky = True

html_theme = "furo"
html_title = f"supcon_tf {release}"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "default"

(REPOSITORY_URL,) = re.findall(r'^REPOSITORY_URL = "(.*)"$', (ROOT / "setup.py").read_text(), re.M)
# A link of index.md to a page: "[Quick start](quick_start.md)".
PAGE_LINK = re.compile(r"^\* \[([^\]]+)\]\((\w+)\.md\)", re.M)
# Where api.md says that the entries follow.
ENTRIES_HERE = "<!-- The entries of the public names follow on the site. -->"


def table_of_contents(text: str, pages: set[str]) -> str:
    """The toctrees of index.md: one for each of its sections, with the pages that it lists.

    A page that it does not list yet follows at the end.
    """
    sections = {}
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        caption, _, rest = section.partition("\n")
        sections[caption] = PAGE_LINK.findall(rest)
    listed = {page for links in sections.values() for _, page in links}
    trees = []
    for caption, links in sections.items():
        entries = "\n".join(f"{title} <{page}>" for title, page in links)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n")
    if others := sorted(pages - listed - {"index"}):
        entries = "\n".join(others)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: More\n\n{entries}\n```\n")
    return "\n".join(trees)


def link_to_the_repository(text: str) -> str:
    """Links to files outside of docs/, which the site does not hold, as links to the repository.

    Without its address (REPOSITORY_URL in setup.py), they become the path of the file.
    """

    def replace(match):
        title, path = match.groups()
        if not REPOSITORY_URL:
            return f"{title} (`{path}`)"
        return f"[{title}]({REPOSITORY_URL}/blob/main/{path})"

    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", replace, text)


def add_what_only_the_site_has(app, page, content):
    content[0] = link_to_the_repository(content[0])
    if page == "index":
        content[0] += "\n" + table_of_contents(content[0], app.project.docnames)
    elif page == "api":
        content[0] = content[0].replace(ENTRIES_HERE, api_entries.write_entries(supcon_tf))


def setup(app):
    app.connect("source-read", add_what_only_the_site_has)
