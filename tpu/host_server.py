"""A TensorFlow server on one host of a slice: it owns the host's TPU for the process that trains.

The TPU software images with "pod" in their name run such a server already; with tensorflow-tpu
from the package index, on Google Kubernetes Engine or a plain image, this is it.

TensorFlow's servers listen on every network interface, whatever address they are given, and run
what anyone who reaches the port sends them. Only the hosts of the slice may reach it: README.md,
"Who may reach the servers".
"""

from __future__ import annotations

import argparse

import tensorflow as tf


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8470, help="where TensorFlow looks for it")
    port = parser.parse_args().port
    # The process that trains tells each server of the others when it connects.
    server = tf.distribute.Server(
        {"worker": [f"0.0.0.0:{port}"]}, job_name="worker", task_index=0, protocol="grpc"
    )
    print(
        f"Serving on port {port} of every interface, without authentication: only the hosts of "
        "the slice may reach it.",
        flush=True,
    )
    server.join()


if __name__ == "__main__":
    main()
