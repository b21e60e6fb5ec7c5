"""What editors, `dir` and `help` show of the package."""

import ast
import pydoc
import re
from pathlib import Path

import supcon_tf

SOURCE = Path(supcon_tf.__file__)


def names_for_editors():
    """Name to module, as the imports under TYPE_CHECKING say."""
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    assert block.test.id == "TYPE_CHECKING"
    return {
        alias.asname: node.module.removeprefix("supcon_tf.")
        for node in block.body
        for alias in node.names
    }


def test_editors_see_the_names_that_load_on_first_use():
    assert names_for_editors() == supcon_tf._MODULE_OF


def test_dir_lists_every_public_name_and_each_can_be_loaded():
    public = {name for name in dir(supcon_tf) if not name.startswith("_")}
    assert public == set(names_for_editors())
    for name in public:
        assert getattr(supcon_tf, name).__name__ == name


def test_help_is_a_summary_of_one_screen():
    text = pydoc.plain(pydoc.render_doc(supcon_tf))
    assert not re.search(r"^(CLASSES|FUNCTIONS|DATA)$", text, re.M)
    lines = text.splitlines()
    assert len(lines) <= 52
    summary = "\n".join(lines[: lines.index("PACKAGE CONTENTS")])
    for name in supcon_tf._MODULE_OF:
        assert re.search(rf"\b{name}\b", summary), name
