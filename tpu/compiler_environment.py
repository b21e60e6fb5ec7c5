"""The virtual environment of the TPU compiler, and how to call the compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements-preflight.txt"


class CompilerEnvironment:
    """A virtual environment with pinned versions of JAX and libtpu, created when it is missing.

    Args:
        folder: The folder of the environment. Nothing else is written there.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder).expanduser().absolute()
        self._stamp = self.folder / "requirements.txt"

    def ensure(self) -> None:
        """Creates the environment unless it exists with the current requirements.

        Raises:
            RuntimeError: pip failed; the message has its output.
        """
        wanted = REQUIREMENTS.read_text()
        if self._stamp.is_file() and self._stamp.read_text() == wanted:
            return
        print(
            f"Creating the compiler's environment in {self.folder} (once; downloads about 400 MB): "
            f"pip install -r {REQUIREMENTS.name}",
            flush=True,
        )
        venv.create(self.folder, with_pip=True, clear=self.folder.is_dir() and self._is_ours())
        command = [self._python, "-m", "pip", "install", "-q", "-r", str(REQUIREMENTS)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
        self._stamp.write_text(wanted)

    def compile(self, topology: str, num_cores: int, hlo: bytes | None = None) -> dict:
        """Compiles a program for a slice and returns the figures of `tpu.tpu_compiler`.

        Args:
            topology: The slice, such as "v5e:4x4".
            num_cores: Number of replicas of the program.
            hlo: Serialized HLO; None only looks up the slice.

        Raises:
            RuntimeError: The compiler's process failed.
        """
        path = self.folder / f"step-{os.getpid()}.hlo"
        command = [self._python, "-m", "tpu.tpu_compiler", f"--topology={topology}"]
        if hlo is not None:
            path.write_bytes(hlo)
            command += [f"--hlo={path}", f"--num_cores={num_cores}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
        path.unlink(missing_ok=True)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            tail = "\n".join(done.stderr.strip().splitlines()[-20:])
            raise RuntimeError(f"The TPU compiler exited with code {done.returncode}:\n{tail}")
        return json.loads(lines[-1])

    @property
    def _python(self):
        return str(self.folder / "bin" / Path(sys.executable).name.split(".")[0])

    def _is_ours(self):
        """Whether the folder may be emptied, because it is empty or a virtual environment."""
        if (self.folder / "pyvenv.cfg").is_file() or not any(self.folder.iterdir()):
            return True
        raise RuntimeError(
            f"{self.folder} contains other files: choose another folder with --env_dir."
        )
