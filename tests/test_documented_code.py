"""The code blocks of the pages: every command parses, and what a small folder can show is run.

A block that the tests cannot run says why in the line above it: <!-- not run: it needs ... -->.
"""

import ast
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.image_folders import encode
from helpers.tiny_images import write_images

from supcon_tf.cli import command_line, implied_flags, study_flags

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [ROOT / "README.md", ROOT / "tpu/README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
each_page = pytest.mark.parametrize("page", PAGES)
MAIN = "-m supcon_tf.main"
# Flags in the text that are those of other programs: pytest, the scripts of tpu/, absl.
OTHER_FLAGS = {
    "slow", "help", "helpfull", "flagfile", "dry_run", "env_dir", "num_cores", "nofind_largest",
    "verbosity",
}  # fmt: skip
# Pages of which every command of a stage runs here, in the folder that `folder` makes.
RUN_COMMANDS = ("README.md", "docs/quick_start.md", "docs/runs.md")
# Pages whose Python blocks run here, one after the other, and what they take as given: the name of
# an array, or "run" for a finished run in runs/mine.
RUN_PYTHON = {
    "docs/quick_start.md": (),
    "README.md": (),
    "docs/losses.md": (),
    "docs/many_devices.md": (),
    "docs/own_data.md": (),
    "docs/questions.md": ("images", "run"),
}
# Python blocks that another test runs.
RUN_ELSEWHERE = {
    "docs/evaluation.md": "test_evaluation_page.py",
    "docs/pretrained.md": "test_pretrained.py",
    "docs/python.md": "test_estimator.py",
}


class Block(NamedTuple):
    language: str
    code: str
    is_marked: bool


def blocks(page):
    """The fenced blocks of a page, also those in a list."""
    text = PAGES[page].read_text(encoding="utf-8")
    pattern = r"(<!-- not run: .+? -->\n)?^( *)```([^\n]*)\n(.*?)^\2```$"
    for marker, indent, language, code in re.findall(pattern, text, re.M | re.S):
        yield Block(language, re.sub(f"^{indent}", "", code, flags=re.M), bool(marker))


def stage_commands(page):
    """The arguments of each command of the program in the blocks that a person would run."""
    for block in blocks(page):
        if block.language == "bash" and not block.is_marked:
            for line in block.code.replace("\\\n", " ").splitlines():
                if MAIN in line:
                    yield shlex.split(line.partition(MAIN)[2], comments=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of somebody who follows the pages, with a few images."""
    write_images(tmp_path, splits=("my_images",), count=10, size=16)
    for name in ("new_images", "other_images/cat", "other_images/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "one.jpg").write_bytes(encode())
    rows = [f"my_images/{name}/{i}.png,{name}\n" for name in ("cat", "dog") for i in range(10)]
    for name in ("labels.csv", "other.csv"):
        (tmp_path / name).write_text("".join(["filename,label\n", *rows]))
    (tmp_path / "runs/digits/pretrain").mkdir(parents=True)
    (tmp_path / "runs/digits/pretrain/stage.flags").write_text("--dataset=digits\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@each_page
def test_every_block_is_of_a_kind_that_is_checked(page):
    assert {block.language for block in blocks(page)} <= {"bash", "python", "text", ""}


@each_page
def test_every_command_parses(page, folder):
    for arguments in stage_commands(page):
        if "--help" in arguments or "$" in " ".join(arguments):
            continue
        with flagsaver.flagsaver():
            rest = flags.FLAGS(implied_flags.complete(["supcon_tf", *arguments]))
        assert len(rest) == 1, arguments


LOOPS = [
    pytest.param(block.code, id=f"{page}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page))
    if block.language == "bash" and block.code.startswith("for ") and MAIN in block.code
]


@pytest.mark.parametrize("code", LOOPS)
def test_every_command_in_a_loop_parses(code, folder):
    """bash runs the loop with a program that only writes down its arguments."""
    program = folder / ".venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$*\" >> calls.txt\n")
    program.chmod(0o755)
    subprocess.run(["bash", "-c", code], cwd=folder, check=True)
    calls = (folder / "calls.txt").read_text().splitlines()
    assert len(set(calls)) == len(calls) > 1
    for call in calls:
        with flagsaver.flagsaver():
            arguments = shlex.split(call.partition(MAIN)[2])
            assert len(flags.FLAGS(implied_flags.complete(["supcon_tf", *arguments]))) == 1, call


@each_page
def test_scripts_in_the_blocks_exist(page):
    code = "\n".join(block.code for block in blocks(page) if block.language == "bash")
    for script in re.findall(
        r"(?<![\w/])((?:benchmarks|examples|docs|tests|tpu)/[\w/]+\.\w+)", code
    ):
        assert (ROOT / script).exists(), script


@each_page
def test_flags_in_the_text_exist(page):
    if page in ("docs/coming_from.md", "tpu/README.md"):  # They name flags of other programs.
        return
    of_studies = {flag.name for study in study_flags.STUDY_FLAGS.values() for flag in study}
    known = set(command_line.own_flags()) | OTHER_FLAGS | of_studies
    known |= {f"no{name}" for name in known}
    text = re.sub(
        r"^ *```.*?^ *```", "", PAGES[page].read_text(encoding="utf-8"), flags=re.M | re.S
    )
    named = set(re.findall(r"`--([a-z]\w*)", text))
    assert not named - known


@each_page
def test_python_blocks_import_what_exists_and_are_run_or_marked(page):
    python = [block for block in blocks(page) if block.language == "python"]
    for block in python:
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("supcon_tf"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    assert hasattr(module, alias.name) or importlib.import_module(name)
    if page in RUN_ELSEWHERE:
        assert Path(page).name in (ROOT / "tests" / RUN_ELSEWHERE[page]).read_text()
    elif not all(block.is_marked for block in python):
        assert page in RUN_PYTHON, f"{page} has Python blocks that no test runs and no marker"


@pytest.fixture(scope="module")
def after_commands(tmp_path_factory):
    """The runs that commands left, by the commands: pages that start with the same share them."""
    kept = {}

    def keep(commands, runs):
        kept[commands] = shutil.copytree(runs, tmp_path_factory.mktemp("kept") / "runs")

    return kept, keep


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_COMMANDS)
def test_the_commands_of_the_page_run_in_order(page, folder, after_commands):
    shutil.rmtree(folder / "runs")
    kept, keep = after_commands
    commands = [tuple(each) for each in stage_commands(page) if "--help" not in each]
    numbers = range(len(commands), 0, -1)
    done = next((number for number in numbers if tuple(commands[:number]) in kept), 0)
    if done:
        shutil.copytree(kept[tuple(commands[:done])], folder / "runs")
    for number, arguments in list(enumerate(commands, 1))[done:]:
        trains = not any(
            part.startswith("--mode=") and "pretrain" not in part for part in arguments
        )
        short = ["--pretrain_epochs=1", "--pretrain_warmup_epochs=0"] if trains else []
        has_data = any(part.startswith(("--data_dir", "--model_dir")) for part in arguments)
        run_inside(*arguments, *short, *([] if has_data else ["--num_images=256"]))
        keep(tuple(commands[:number]), folder / "runs")
    assert (folder / "runs/mine/predict/predictions.csv").exists()


@pytest.fixture(scope="module")
def ran_alone():
    """The blocks that ran without names of others: a copy on another page need not run again."""
    return set()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PYTHON)
def test_the_python_blocks_of_the_page_run_as_they_stand(page, folder, ran_alone, capsys):
    given = {"images": np.zeros([2, 16, 16, 3], np.uint8)}
    names = {name: given[name] for name in RUN_PYTHON[page] if name in given}
    if "run" in RUN_PYTHON[page]:
        run_inside(
            "--mode=pretrain", "--data_dir=my_images", "--model_dir=runs/mine",
            "--pretrain_epochs=1", "--pretrain_warmup_epochs=0",
        )  # fmt: skip
    python = [block.code for block in blocks(page) if block.language == "python"]
    assert python
    for code in python:
        if code in ran_alone:
            continue
        if not names:
            ran_alone.add(code)
        exec(compile(code, page, "exec"), names)
    if "classifier" in names:
        accuracy = float(capsys.readouterr().out.strip().splitlines()[-1])
        assert accuracy > 0.9
