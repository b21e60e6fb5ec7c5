"""What the package imports is what setup.py declares."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Imported by tensorflow-datasets 4.9.10, which does not declare it.
FOR_OTHERS = {"importlib_resources"}


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared():
    """The distributions of install_requires."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg == "install_requires":
            requirements = ast.literal_eval(node.value)
            return {normalized(re.match(r"[\w.-]+", text).group()) for text in requirements}
    raise AssertionError("setup.py has no install_requires")


def imported():
    """The top-level modules that the package imports, and the standard library's left out."""
    modules = set()
    for path in (ROOT / "supcon_tf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - {"supcon_tf"}


def test_every_import_has_a_declared_distribution():
    distributions = importlib.metadata.packages_distributions()
    for module in sorted(imported()):
        names = {normalized(name) for name in distributions[module]}
        assert names & declared(), f"import {module}: setup.py declares none of {sorted(names)}"


def test_imports_of_dependencies_that_do_not_declare_them_are_declared():
    assert {normalized(name) for name in FOR_OTHERS} <= declared()
