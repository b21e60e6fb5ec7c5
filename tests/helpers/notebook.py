"""Runs a notebook from top to bottom and keeps its outputs.

    PYTHONPATH=tests .venv/bin/python -m helpers.notebook examples/notebook.ipynb

runs it and writes the new outputs into the file, as a person sees them: a progress bar that was
drawn many times over itself is kept as it was at last.
"""

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent.parent


def run_notebook(path, *, replaced=None, timeout_seconds=1_800):
    """Returns the notebook with the outputs of a new kernel; raises if a cell fails.

    A test replaces texts of the cells, such as the number of epochs, to train for less.
    """
    notebook = nbformat.read(path, as_version=4)
    for old, new in (replaced or {}).items():
        code = (cell for cell in notebook.cells if cell.cell_type == "code")
        (cell,) = (cell for cell in code if old in cell.source)
        cell.source = cell.source.replace(old, new)
    os.environ["PYTHONPATH"] = str(ROOT)
    client = NotebookClient(
        notebook, timeout=timeout_seconds, kernel_name="python3", record_timing=False
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # TensorFlow reports the devices of the machine on standard error when it starts.
            cell.outputs = [x for x in merged(cell.outputs) if x.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = as_shown(output.text)
    return notebook


def merged(outputs):
    """Joins the pieces in which a stream arrives."""
    kept = []
    for output in outputs:
        last = kept[-1] if kept else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            kept.append(output)
    return kept


def as_shown(text):
    """The text after every carriage return has gone back to the start of its line."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(re.sub(r"\s+$", "", shown))
    return "\n".join(lines)


def main():
    path = Path(sys.argv[1])
    notebook = run_notebook(path)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
