"""What the package imports is what setup.py declares."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def readme_command(name):
    """What CI runs for one of the README's set-up commands."""
    script = [sys.executable, ROOT / ".ci" / "readme_command", name]
    return subprocess.run(script, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "install", "then"),
    [
        ("main", "-e .", "-m supcon_tf.main --mode=pretrain,linear,eval"),
        ("tests", "-e '.[test]'", "-m pytest"),
    ],
)
def test_ci_reads_the_set_up_commands_between_their_markers(name, install, then):
    steps = readme_command(name).stdout.removesuffix("\n").split(" && ")
    assert steps[:2] == ["python3 -m venv .venv", f".venv/bin/pip install -q {install}"]
    assert steps[2].startswith(f".venv/bin/python {then}") and len(steps) == 3


def test_a_set_up_command_without_markers_is_an_error():
    result = readme_command("no_such_command")
    assert result.returncode and "no_such_command" in result.stderr


@pytest.mark.parametrize("module", ["supcon_tf", "supcon_tf.main"])
def test_the_package_runs_as_a_module(module):
    command = [sys.executable, "-m", module, "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "--mode" in result.stdout


def test_the_wheel_carries_its_types_recipes_and_command(tmp_path):
    """What setup.py declares, as setuptools reads it."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (info,) = tmp_path.iterdir()
    files = set((info / "SOURCES.txt").read_text().splitlines())
    assert {"supcon_tf/py.typed", "flags/digits.flags"} <= files
    assert "supcon-tf = supcon_tf.main:run" in (info / "entry_points.txt").read_text()
    metadata = (info / "PKG-INFO").read_text()
    assert "Typing :: Typed" in metadata and "Provides-Extra: cuda" in metadata
