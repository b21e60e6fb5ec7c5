"""What the package imports is what setup.py declares, and what a release holds."""

import ast
import importlib.metadata
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

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


def test_the_version_has_one_place_and_what_repeats_it_agrees():
    version = importlib.import_module("supcon_tf").__version__
    assert f'"{version}"' not in (ROOT / "setup.py").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {version}")


def test_the_address_of_the_repository_has_one_place(monkeypatch):
    """With REPOSITORY_URL set, the metadata names it and the README's links work elsewhere."""
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: given.update(options))
    monkeypatch.chdir(ROOT)
    source = (ROOT / "setup.py").read_text()
    place = 'REPOSITORY_URL = ""'
    assert source.count(place) == 1
    names = {"__file__": str(ROOT / "setup.py"), "__name__": "setup"}
    exec(source.replace(place, 'REPOSITORY_URL = "https://host.invalid/supcon_tf"'), names)
    assert given["project_urls"]["Source"] == "https://host.invalid/supcon_tf"
    assert "](https://host.invalid/supcon_tf/raw/main/docs/digits.png)" in given["long_description"]
    links = re.findall(r"\]\(([^)]+)\)", given["long_description"])
    assert all(link.startswith("https://") for link in links) and len(links) > 10
    runpy.run_path(str(ROOT / "setup.py"))
    assert given["long_description"] == (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["Dockerfile", "tpu/Dockerfile"])
def test_images_follow_the_rules_of_hadolint(name):
    command = [Path(sys.executable).parent / "hadolint", "--no-color", ROOT / name]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_workflow_covers_the_python_versions_that_the_package_declares():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    oldest = matrix["packages"][0]
    newest = {job["python"] for job in matrix["include"]}
    text = (ROOT / "setup.py").read_text()
    assert newest == set(re.findall(r"Programming Language :: Python :: (3\.\d+)", text))
    assert set(matrix["python"]) == newest - {"3.13"}  # TensorFlow 2.18 has no wheel for it.
    for name, version in re.findall(r"(\w+)==([\d.]+)\.\*", oldest):
        assert f'"{name}>={version}"' in text


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_forms_and_workflows_are_yaml(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "ISSUE_TEMPLATE" and path.stem != "config":
        assert {"name", "description", "body"} <= set(content)
        ids = [part["id"] for part in content["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids)) and all(part["attributes"] for part in content["body"])


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The folder with the sdist and the wheel, built from the files that git knows."""
    folder = tmp_path_factory.mktemp("release")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, files.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist"],
        cwd=folder / "source", check=True, capture_output=True,
    )  # fmt: skip
    return folder / "dist"


@pytest.mark.slow
def test_a_release_is_accepted_by_the_package_index(release):
    files = [str(path) for path in release.iterdir()]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    result = subprocess.run(command, capture_output=True, text=True)
    assert len(files) == 2 and result.returncode == 0, result.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_recipes_and_nothing_else(release):
    (path,) = release.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licenses = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    command = ["git", "ls-files", "supcon_tf"]
    known = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    expected = {name for name in known.stdout.splitlines() if (ROOT / name).exists()}
    expected |= {f"supcon_tf/flags/{path.name}" for path in (ROOT / "flags").glob("*.flags")}
    assert names == expected and licenses


@pytest.mark.slow
def test_the_sdist_holds_what_git_knows(release):
    """Somebody who packages it for a distribution can run the tests and build the pages."""
    (path,) = release.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = [entry.name.partition("/")[2] for entry in archive if entry.isfile()]
    made = {"PKG-INFO", "setup.cfg"}
    names = {name for name in files if not name.startswith("supcon_tf.egg-info/")} - made
    known = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    left_out = {".gitignore", ".dockerignore"}
    expected = {name for name in known.stdout.splitlines() if not name.startswith(".github/")}
    assert names == {name for name in expected if (ROOT / name).exists()} - left_out
