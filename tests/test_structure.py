"""Imports point one way, only the command knows flags, and the page on the structure is true."""

import ast
import re
from pathlib import Path

import pytest

from supcon_tf import main

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "supcon_tf"
TESTS = ROOT / "tests"
# Which rooms each room may import: a room is a folder of the package or a file at its top.
# Files of one room may import each other, but not in a circle.
ALLOWED = {
    "__main__": {"main"},
    "main": {"cli", "stages", "strategies", "training"},
    "stages": {
        "cli", "data", "training", "evaluation", "interop", "storage", "augment", "models",
        "losses", "strategies", "report",
    },
    "studies": {"cli", "evaluation", "storage"},
    "estimator": {
        "fitting", "fit_settings", "data", "training", "evaluation", "storage", "models", "losses",
        "strategies",
    },
    "fitting": {
        "fit_settings", "data", "training", "evaluation", "augment", "models", "losses",
    },
    "fit_settings": {"data", "training", "storage", "models", "strategies"},
    "cli": {"data", "losses", "storage"},
    "training": {"storage", "augment", "losses", "models", "collectives", "strategies"},
    "data": {"augment", "models"},
    "evaluation": {"models", "collectives", "strategies"},
    "interop": {"models"},
    "report": {"evaluation"},
    "losses": {"models", "collectives", "xla"},
    "augment": set(),
    "models": {"storage", "collectives", "xla"},
    "storage": set(),
    "strategies": {"collectives"},
    "collectives": set(),
    "xla": set(),
}  # fmt: skip
# What `import` of the command may load before TensorFlow: nothing of this needs it.
WITHOUT_TENSORFLOW = (
    "data/csv_labels.py", "data/defaults.py", "data/folder_layout.py", "losses/options.py",
    "storage/encoder_files.py", "storage/run_paths.py",
    "storage/sealed.py",
)  # fmt: skip
FLAG_ROOMS = ("main", "cli", "stages", "studies")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room(path):
    return module_of(path).split(".")[0]


def imported_modules(path):
    """The modules of this package that a file imports, as "losses.supcon"."""
    known = {module_of(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("supcon_tf"):
            parent = node.module.split(".")[1:]
            for alias in node.names:
                names = [".".join([*parent, alias.name]), ".".join(parent)]
                yield next((name for name in names if name in known), names[-1])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("supcon_tf."), f"{path}: from supcon_tf import"


def imported_rooms(path):
    return {module.split(".")[0] for module in imported_modules(path)} - {room(path), ""}


@each_file
def test_imports_point_one_way(path):
    assert imported_rooms(path) <= ALLOWED[room(path)]


def test_the_rooms_have_an_order():
    """Nothing that a room may import may import that room, directly or through others."""

    def below(name):
        return ALLOWED[name].union(*map(below, ALLOWED[name]))

    assert all(name not in below(name) for name in ALLOWED)


def test_no_two_files_define_the_same_name():
    """One name, one meaning. Only the stages and the command share one: `run`."""
    places = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "run":
                places.setdefault(node.name, []).append(module_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_only_stages_and_the_command_are_run():
    stages = {f"stages.{name}" for name in main.STAGE_MODULES.values()}
    found = {
        module_of(path)
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    }
    assert found == stages | {"main"}


def test_no_file_imports_itself_through_others():
    imports = {module_of(path): set(imported_modules(path)) - {""} for path in FILES}
    done = set()

    def visit(module, way):
        assert module not in way, " -> ".join([*way, module])
        if module not in done:
            for other in imports.get(module, ()):
                visit(other, [*way, module])
            done.add(module)

    for module in imports:
        visit(module, [])


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_what_the_flags_read_needs_no_tensorflow(name):
    assert not re.search(
        r"^\s*(import|from) (tensorflow|keras)", (PACKAGE / name).read_text(), re.M
    )


@each_file
def test_only_the_command_knows_flags(path):
    text = path.read_text()
    if room(path) not in FLAG_ROOMS:
        assert "absl" not in text and "FLAGS" not in text


@each_file
def test_a_file_stays_readable_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 450


def test_the_diagram_shows_the_imports():
    """docs/architecture.md lists for each room the rooms that it imports."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    (diagram,) = re.findall(r"```text\n(.*?)```", text, re.S)
    drawn = {}
    for line in diagram.strip().splitlines():
        name, _, imports = line.partition("->")
        drawn[name.strip()] = set(imports.split())
    found = {}
    for path in FILES:
        found.setdefault(room(path), set()).update(imported_rooms(path))
    assert drawn == found


def test_every_file_on_the_page_exists():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for name in re.findall(r"`((?:supcon_tf|tests|docs|flags|tpu)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_test_files_share_helpers_and_nothing_else(path):
    """What two test files need stands in tests/helpers/, where nothing is collected as a test."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            imported.update(alias.name.split(".")[0] for alias in node.names)
    assert not [name for name in imported if name == "conftest" or name.startswith("test_")]
    assert not imported & {helper.stem for helper in (TESTS / "helpers").glob("*.py")}
    is_helper = path.parent == TESTS / "helpers"
    assert is_helper != (path.name == "conftest.py" or path.name.startswith("test_"))


def public_functions(body, inside=()):
    """(name, node, whether it is a method) of the public functions and of the constructors."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, (*inside, node.name))
        elif isinstance(node, ast.FunctionDef) and (
            not node.name.startswith("_") or node.name == "__init__"
        ):
            static = any(getattr(mark, "id", "") == "staticmethod" for mark in node.decorator_list)
            yield ".".join((*inside, node.name)), node, bool(inside) and not static


@each_file
def test_public_signatures_have_type_hints(path):
    missing = []
    for name, node, is_method in public_functions(ast.parse(path.read_text()).body):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        missing += [
            f"{name}({argument.arg})"
            for argument in arguments[is_method:]
            if argument.annotation is None
        ]
        if node.returns is None and node.name != "__init__":
            missing.append(f"{name} -> ?")
    assert not missing
