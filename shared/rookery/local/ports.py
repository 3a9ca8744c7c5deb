"""Ports of the loopback that nobody has."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOWEST = 10_000
ATTEMPTS = 100
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Below those that the system gives to whoever calls out, which could be taken before somebody listens.

    Where there are none below, one of these.
    """
    highest = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else LOWEST
    for _ in range(ATTEMPTS if highest > LOWEST else 0):
        if found := _bound(random.SystemRandom().randrange(LOWEST, highest)):
            return found
    return _bound(0)


def _bound(port: int) -> int:
    """The port, or one of the system's choice for 0; 0 if it is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        found: int = probe.getsockname()[1]
        return found
