"""Reads a page with the standard library's parser, as a browser builds its elements."""

import dataclasses
from html.parser import HTMLParser

from supcon_tf.report.markup import VOID


@dataclasses.dataclass
class Element:
    name: str
    attributes: dict
    children: list = dataclasses.field(default_factory=list)
    parent: "Element | None" = None

    def all(self, name=None):
        """Every element below, in order; of one name if it is given."""
        for child in self.children:
            if isinstance(child, Element):
                if name in (None, child.name):
                    yield child
                yield from child.all(name)

    @property
    def text(self):
        parts = [c.text if isinstance(c, Element) else c for c in self.children]
        return "".join(parts)

    def find(self, id):
        return next(element for element in self.all() if element.attributes.get("id") == id)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.top = self.here = Element("", {})

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        element = Element(tag, dict(attrs), parent=self.here)
        self.here.children.append(element)
        if tag not in VOID:
            self.here = element

    def handle_startendtag(self, tag, attrs):
        self.here.children.append(Element(tag, dict(attrs), parent=self.here))

    def handle_endtag(self, tag):
        assert self.here.name == tag, f"</{tag}> closes <{self.here.name}>"
        self.here = self.here.parent

    def handle_data(self, data):
        self.here.children.append(data)


def read_page(text) -> Element:
    """The elements of a page. Raises AssertionError if a tag is not closed in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.here is reader.top, f"<{reader.here.name}> is not closed"
    return reader.top
