"""Runs of the command in processes and directories of their own, one after the other or several.

A job is finished when its directory has `job.json`. Started again, a study skips the finished jobs,
and the command resumes the one that was interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import supcon_tf

DONE, LOG_FILE = "job.json", "output.txt"
NUM_SHOWN = 15  # Lines of the output of a failed job.


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the command.

    Attributes:
        folder: The model directory.
        mode: The stages, as --mode takes them.
        flags: All other flags but --model_dir.
    """

    folder: Path
    mode: str
    flags: tuple[str, ...]

    def is_finished(self) -> bool:
        """Returns whether the job was run with these flags.

        Raises:
            ValueError: If it was run with other flags.
        """
        path = self.folder / DONE
        if not path.exists():
            return False
        recorded, wanted = json.loads(path.read_text()), self._record()
        if recorded != wanted:
            before, now = (
                {f"--mode={record['mode']}", *record["flags"]} for record in (recorded, wanted)
            )
            raise ValueError(
                f"{self.folder} was run with other flags: {' '.join(sorted(before - now))} instead "
                f"of {' '.join(sorted(now - before))}. Use another folder for the changed study, "
                "or delete that one."
            )
        return True

    def execute(self) -> None:
        """Runs the command; its output goes to `output.txt`.

        Raises:
            RuntimeError: If it fails. The message has the end of its output.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "supcon_tf.main", f"--mode={self.mode}"]
        command += [f"--model_dir={self.folder}", *self.flags]
        root = str(Path(supcon_tf.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        output = self.folder / LOG_FILE
        with output.open("w") as file:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        if done.returncode:
            end = "\n".join(output.read_text(errors="replace").splitlines()[-NUM_SHOWN:])
            raise RuntimeError(f"{' '.join(command)}\nfailed with code {done.returncode}:\n{end}")
        temporary = self.folder / f"{DONE}.partial"
        temporary.write_text(json.dumps(self._record(), indent=1) + "\n")
        temporary.replace(self.folder / DONE)

    def _record(self):
        return {"mode": self.mode, "flags": list(self.flags)}


def execute_jobs(
    jobs: Sequence[Job],
    *,
    num_parallel: int = 1,
    task: int | None = None,
    after_each: Callable[[Job], None] | None = None,
) -> None:
    """Runs the jobs that are not finished.

    Args:
        jobs: The jobs; none needs another one of them.
        num_parallel: How many run at a time.
        task: Only the job of this number, from 0, for the array jobs of a cluster.
        after_each: Called with each finished job, also with those that were finished before.

    Raises:
        ValueError: If there is no such task, or if a job was run with other flags.
        RuntimeError: If jobs fail; the others are still run.
    """
    if task is not None and not 0 <= task < len(jobs):
        raise ValueError(f"--task={task} is out of range: there are {len(jobs)} runs, from 0.")
    chosen = list(jobs) if task is None else [jobs[task]]
    are_done = [job.is_finished() for job in chosen]
    print(f"Runs: {len(chosen)}, finished before: {sum(are_done)}.", flush=True)

    def work(job, is_done):
        try:
            if not is_done:
                job.execute()
            if after_each is not None:
                after_each(job)
        except RuntimeError as error:
            return str(error)
        print(f"finished {job.folder}", flush=True)
        return None

    with ThreadPoolExecutor(num_parallel) as threads:
        failures = [text for text in threads.map(work, chosen, are_done) if text]
    if failures:
        raise RuntimeError(f"{len(failures)} runs failed. The first one:\n{failures[0]}")
