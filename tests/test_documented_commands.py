"""The commands in the docs start Python in one way, which works without activation."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from supcon_tf.cli.program import python_program

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "tpu/README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [*sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
# Programs that an environment holds; the shell finds them by name only in an activated one.
OF_ENVIRONMENT = {"python", "python3", "pip", "pytest", "tensorboard", "tfds", "ruff", "supcon-tf"}


def commands(page):
    """The commands of the bash blocks, and of inline code that starts with a program."""
    text = page.read_text()
    code = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    code += re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||;(?! s[ .])|\bdo\b", line):
            yield part.strip()


def is_bare(command):
    words = command.split()
    if len(words) < 2 or words[:3] == ["python3", "-m", "venv"]:
        return False
    return words[0] in OF_ENVIRONMENT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_names_the_environment(page):
    assert not [command for command in commands(page) if is_bare(command)]


def test_the_readme_starts_python_in_one_way():
    programs = {
        shlex.split(command, comments=True)[0]
        for command in commands(PAGES[0])
        if re.match(r"\S*python\S* +(-m supcon_tf|-c |benchmarks/)", command)
    }
    assert programs == {".venv/bin/python"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_say_how_to_run_them_in_the_same_way(path):
    usage = f"python {path.relative_to(ROOT)}"
    lines = [line for line in path.read_text().splitlines() if usage in line]
    assert all(f".venv/bin/{usage}" in line for line in lines)


def write_program(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    "where,on_path,expected",
    [
        ("work/.venv/bin", False, ".venv/bin/python"),
        ("work/.venv/bin", True, "python"),
        ("elsewhere/bin", False, "{root}/elsewhere/bin/python"),
        ("elsewhere/bin", True, "python"),
    ],
)
def test_printed_commands_start_the_python_that_runs(
    tmp_path, monkeypatch, where, on_path, expected
):
    (tmp_path / "work").mkdir()
    program, other = tmp_path / where / "python", tmp_path / "system/bin/python"
    write_program(program)
    write_program(other)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("PATH", f"{program.parent if on_path else other.parent}")
    assert python_program() == expected.format(root=tmp_path)
