"""Ports of the loopback that nobody has."""

from __future__ import annotations

import random
import socket
from collections import deque
from pathlib import Path

LOWEST = 10_000
ATTEMPTS = 100
CLAIMS = 64
"""Whoever asked for so many ports listens on the first of them by now."""
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

_claims: deque[socket.socket] = deque()


def free_port() -> int:
    """Below those that the system gives to whoever calls out, which could be taken before somebody listens.

    Where there are none below, one of these. On Linux no two processes get the same one before somebody listens: each
    keeps a claim to the last `CLAIMS` that it got.
    """
    highest = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else LOWEST
    for _ in range(ATTEMPTS if highest > LOWEST else 0):
        port = random.SystemRandom().randrange(LOWEST, highest)
        if _claimed(port) and _bound(port):
            return port
    return _bound(0)


def _claimed(port: int) -> bool:
    """A socket of an abstract name, which the system takes away with the process, says so to the others."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0rookery-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    if len(_claims) > CLAIMS:
        _claims.popleft().close()
    return True


def _bound(port: int) -> int:
    """The port, or one of the system's choice for 0; 0 if it is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        found: int = probe.getsockname()[1]
        return found
