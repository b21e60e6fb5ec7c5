"""How to call this Python, for commands that a user is to copy."""

from __future__ import annotations

import os
import shutil
import sys


def python_program() -> str:
    """Returns `python` if the shell finds this Python by that name, else its path.

    The name works in an activated environment. Without activation, the path is relative to the
    current folder if the environment is inside it, such as `.venv/bin/python`, else absolute.
    Symbolic links are not resolved, because the Pythons of all environments link to the same file.
    """
    if not sys.executable:  # Python is embedded in another program.
        return "python"
    path = os.path.abspath(sys.executable)
    found = shutil.which("python")
    if found and os.path.dirname(os.path.abspath(found)) == os.path.dirname(path):
        return "python"
    folder = os.getcwd() + os.sep
    return path.removeprefix(folder) if path.startswith(folder) else path
