"""The tf.data service: whether its dispatcher can be reached."""

from __future__ import annotations

import socket
import urllib.parse

CONNECT_SECONDS = 20


def check_reachable(address: str, *, timeout_seconds: float = CONNECT_SECONDS) -> None:
    """Checks that a dispatcher accepts connections.

    tf.data itself retries forever, and a process that waits for it does not react to signals.

    Args:
        address: "grpc://host:port".
        timeout_seconds: how long to wait for a connection.

    Raises:
        ValueError: if the address has no host or port.
        OSError: if the connection fails.
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
            "one there, correct the address, or omit the flag to make batches in this process."
        ) from error
