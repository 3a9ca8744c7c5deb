"""`rookery up`: all services on this machine, one log view, Ctrl-C stops them."""

from __future__ import annotations

import signal
import threading
from importlib.util import find_spec
from typing import Annotated

import typer

from rookery.cli.options import DEFAULT_FOLDER, DEFAULT_SERVER, Folder
from rookery.cli.render import console
from rookery.errors import RookeryError


class NotInstalled(RookeryError):
    """The command needs the extra `local`."""

    reason = "NOT_INSTALLED"


def up(
    folder: Folder = DEFAULT_FOLDER,
    address: Annotated[str, typer.Option(help="Where the public API listens.")] = DEFAULT_SERVER,
) -> None:
    """Start all services on this machine. A second `up` in the same folder goes on where the first stopped."""
    require_local()
    from rookery.local.cluster import Cluster
    from rookery.local.logs import LogView

    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    cluster = Cluster(folder, address=address, sink=LogView(folder / "logs", console))
    cluster.start()
    console.print(f"[bold]Rookery is up at {address}[/]; its state is in {folder}. Ctrl-C stops it.")
    stop.wait()
    console.print("Stopping ...")
    cluster.stop()
    console.print("Stopped. `rookery up` goes on from here.")


def require_local() -> None:
    """Raises NotInstalled if a package that the services need is missing."""
    missing = [name for name in ("celery", "grpc_health", "sqlalchemy", "torch") if find_spec(name) is None]
    if missing:
        raise NotInstalled(
            f"{', '.join(missing)} missing; `pip install '.[local]'` in Rookery's folder has all services"
        )
