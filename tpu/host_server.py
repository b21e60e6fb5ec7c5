"""A TensorFlow server on one host of a slice. It makes the host's TPU available for training.

TPU software images with "pod" in their name already run such a server. This script is for all other
installations: tensorflow-tpu from the package index on a plain image, and Google Kubernetes Engine.

TensorFlow servers listen on every network interface, whatever address they are given, and execute
what anyone who can connect to the port sends. Allow only the hosts of the slice to connect: see
"Who may reach the servers" in README.md.
"""

from __future__ import annotations

import argparse

import tensorflow as tf


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--port", type=int, default=8470, help="Port of the server; TensorFlow expects 8470."
    )
    port = parser.parse_args().port
    # When the training process connects, it tells each server about the other servers.
    server = tf.distribute.Server(
        {"worker": [f"0.0.0.0:{port}"]}, job_name="worker", task_index=0, protocol="grpc"
    )
    print(
        f"Serving on port {port} of every network interface without authentication. Make sure "
        "that only the hosts of the slice can connect.",
        flush=True,
    )
    server.join()


if __name__ == "__main__":
    main()
