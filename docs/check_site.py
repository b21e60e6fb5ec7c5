"""Checks that no page of the built site requests anything from another host, and lists its links.

    .venv/bin/python docs/check_site.py docs/_build

Scripts, styles, fonts and pictures must come from the site itself. Links to other hosts are only
listed: whether they still work can be checked with
`.venv/bin/sphinx-build -b linkcheck docs docs/_build/linkcheck`, which needs the network.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

# Attributes whose address a browser requests by itself, for any tag but a link to click.
REQUESTED = ("src", "srcset", "href", "data", "poster", "action")
REMOTE = re.compile(r"^\s*(https?:)?//", re.I)


class _Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.requested, self.links = set(), set()

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in REQUESTED and value and REMOTE.match(value):
                # rel="canonical" and the like are not requested, but the site needs none.
                (self.links if tag == "a" else self.requested).add(value)


def main() -> None:
    site = Path(sys.argv[1])
    requested, links = set(), set()
    for path in site.rglob("*.html"):
        page = _Addresses()
        page.feed(path.read_text(encoding="utf-8"))
        links |= page.links
        requested |= {f"{path.relative_to(site)}: {address}" for address in page.requested}
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        for address in re.findall(r"url\(\s*['\"]?((?:https?:)?//[^'\")]+)", text):
            requested.add(f"{path.relative_to(site)}: {address}")
        requested |= {
            f"{path.relative_to(site)}: {rule}" for rule in re.findall(r"@import[^;]*//[^;]*", text)
        }
    for path in site.rglob("*.js"):
        text = path.read_text(encoding="utf-8")
        calls = r"(?:fetch|import|open|src\s*=)\s*\(?\s*['\"](?:https?:)?//[^'\"]+"
        requested |= {f"{path.relative_to(site)}: {call}" for call in re.findall(calls, text)}
    print(f"{len(links)} links to other hosts, not followed:")
    print(*sorted(links), sep="\n")
    if requested:
        sys.exit("The site requests from other hosts:\n" + "\n".join(sorted(requested)))
    print("No page requests anything from another host.")


if __name__ == "__main__":
    main()
