"""The tf.data service: whether its dispatcher can be reached."""

from __future__ import annotations

import socket
import urllib.parse

CONNECT_SECONDS = 20


def check_reachable(address: str, *, timeout_seconds: float = CONNECT_SECONDS) -> None:
    """Connects to a dispatcher and hangs up again.

    tf.data itself tries for ever, and a process that waits for it does not hear signals.

    Args:
        address: "grpc://host:port".
        timeout_seconds: how long to wait for an answer.

    Raises:
        ValueError: no host or port in the address.
        OSError: nothing answers there.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ValueError(f"data_service={address}: expected grpc://host:port with a port number.")
    try:
        socket.create_connection((host, port), timeout=timeout_seconds).close()
    except OSError as error:
        raise OSError(
            f"No tf.data service dispatcher answers at --data_service={address} ({error}). Start "
            "one there, correct the address, or leave the flag out to make the batches here."
        ) from error
