"""A process that is paused while another one is measured, and the loop inside of it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

from records import REPOSITORY


def answer_rates(run, images):
    """For each line of input, a number of seconds, prints images per second and peak memory in GB.

    Args:
        run: Takes one step.
        images: Images of a step.
    """
    for line in sys.stdin:
        started, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - started < float(line):
            run()
            steps += 1
        rate = steps * images / (time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps([rate, peak]), flush=True)


class PausedWorker:
    """Runs a command that answers each line of input with one line of JSON.

    The process and those that it starts are paused between questions, so that their background work
    (filling buffers, spinning threads) does not disturb other measurements.

    Attributes:
        greeting: The line that the process printed when it was ready.
    """

    def __init__(self, command: list):
        environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), TF_CPP_MIN_LOG_LEVEL="3")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,  # So that signals also reach the processes that it starts.
        )
        self.greeting = self._read()
        self._send(signal.SIGSTOP)

    def ask(self, question) -> object:
        """Sends a question, resumes the process until it answers, and returns the answer."""
        self._send(signal.SIGCONT)
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._read()
        self._send(signal.SIGSTOP)
        return answer

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        self._process.wait()

    def _send(self, number):
        os.killpg(self._process.pid, number)

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"A worker process exited. Run it by itself to see why: {self._process.args}"
            )
        return json.loads(line)
