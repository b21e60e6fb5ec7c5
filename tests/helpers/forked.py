"""The command in processes of their own that share one import of TensorFlow.

A server imports TensorFlow and forks for every command, before TensorFlow has started threads. A
command then takes about six CPU seconds less than in a new interpreter, as test_main.py starts
one. The processes are as separate as others: exit codes, signals and environment.
"""

import atexit
import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class ForkedCommand:
    """A running command, with the methods of `subprocess.Popen` that tests use.

    Args:
        arguments: The arguments of the command.
        log: The file to which standard output goes.
        error_log: The file to which standard error goes; `log` by default.
        max_file_bytes: Limit of the size of each file that it writes.
        environment: Variables to change in its environment.
    """

    def __init__(self, arguments, log, *, error_log=None, max_file_bytes=None, **environment):
        self.log, self.error_log = Path(log), Path(error_log or log)
        self.returncode = None
        self.pid = _ask(
            arguments=[str(argument) for argument in arguments],
            logs=[str(self.log), str(self.error_log)],
            max_file_bytes=max_file_bytes,
            environment=environment,
        )

    def poll(self):
        if self.returncode is None:
            self.returncode = _ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout=900):
        ends_at = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > ends_at:
                raise subprocess.TimeoutExpired("supcon_tf", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def output(self):
        """What it said so far."""
        return self.log.read_text()


def run_forked(*arguments, folder, **options):
    """Runs the command to its end, as `run_command` does; its output goes to files in `folder`."""
    logs = [Path(folder) / f"command.{name}" for name in ("out", "err")]
    process = ForkedCommand(arguments, logs[0], error_log=logs[1], **options)
    try:
        process.wait()
    finally:
        process.kill()
    texts = [path.read_text() for path in logs]
    return subprocess.CompletedProcess(list(arguments), process.returncode, *texts)


@functools.cache
def _server():
    paths = [str(ROOT), str(ROOT / "tests")]
    server = subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    atexit.register(server.communicate)  # Closes its input, which ends it.
    return server


def _ask(**request):
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve(answers):
    """Answers requests; in the process of a command it returns the request."""
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return request
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return None


def _become(request):
    """Makes this process the one that was asked for."""
    inputs = os.open(os.devnull, os.O_RDONLY)
    outputs = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in request["logs"]]
    if request["logs"][0] == request["logs"][1]:
        outputs[1] = outputs[0]
    for number, file in enumerate((inputs, *outputs)):
        os.dup2(file, number)
    if request["max_file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (request["max_file_bytes"],))
    os.environ.update(request["environment"])
    sys.argv = [str(ROOT / "supcon_tf/main.py"), *request["arguments"]]


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Nothing else is an answer.
    import tensorflow  # noqa: F401

    from supcon_tf import main as command

    for module in command.STAGE_MODULES.values():
        importlib.import_module(f"supcon_tf.stages.{module}")
    request = _serve(answers)
    if request:
        answers.close()
        _become(request)
        command.run()


if __name__ == "__main__":
    main()
