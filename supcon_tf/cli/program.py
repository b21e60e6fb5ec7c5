"""How to type the Python that runs this, for commands that a user is to paste."""

from __future__ import annotations

import os
import shutil
import sys


def python_program() -> str:
    """`python` if the shell would find this Python by that name, else its path.

    The name works in an activated environment. Without activation it is the path relative to the
    current folder if the environment lies below it, such as `.venv/bin/python`, else the absolute
    path. Links are not resolved: every environment's Python links to the same file.
    """
    if not sys.executable:  # Embedded in another program.
        return "python"
    path = os.path.abspath(sys.executable)
    found = shutil.which("python")
    if found and os.path.dirname(os.path.abspath(found)) == os.path.dirname(path):
        return "python"
    folder = os.getcwd() + os.sep
    return path.removeprefix(folder) if path.startswith(folder) else path
