"""The pages of docs/: links, names of tests, and the check of the built site."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "tpu/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_code(text):
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)


def anchors(page):
    """The anchors that a code host gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_to_files_and_headings_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name} links to {path}, which does not exist"
        assert not anchor or anchor in anchors(target), f"{page.name}: no heading for {link}"


def test_the_tests_of_each_promise_exist():
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    tests = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    named = set(re.findall(r"`(test_\w+)`", page))
    files = set(re.findall(r"`(test_\w+\.py)`", page))
    assert len(named) > 20 and files <= set(tests)
    every_line = "\n".join(tests[name] for name in files)
    assert not [name for name in named if f"def {name}(" not in every_line]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.html", '<script src="https://example.org/a.js"></script>'),
        ("page.html", '<link rel="stylesheet" href="//example.org/a.css">'),
        ("page.html", '<img src="https://example.org/a.png">'),
        ("style.css", "@font-face { src: url(https://example.org/a.woff2) }"),
        ("style.css", '@import "https://example.org/a.css";'),
        ("script.js", 'fetch("https://example.org/data.json")'),
    ],
)
def test_a_site_that_asks_another_host_for_something_fails_the_check(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    result = check_site(tmp_path)
    assert (
        result.returncode == 1 and f"{name}: " in result.stderr and "example.org" in result.stderr
    )


def test_links_to_other_hosts_are_listed(tmp_path):
    (tmp_path / "page.html").write_text('<a href="https://example.org/">text</a> <img src="a.png">')
    result = check_site(tmp_path)
    assert result.returncode == 0 and "https://example.org/" in result.stdout


def check_site(folder):
    command = [sys.executable, ROOT / "docs/check_site.py", folder]
    return subprocess.run(command, capture_output=True, text=True)
