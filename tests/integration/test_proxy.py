"""What the proxy of the fault kit does to a connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.proxy import Proxy, Way
from tests.waiting import wait_until


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Before a server that sends back what it gets."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with Proxy(f"127.0.0.1:{server.server_address[1]}") as started:
        yield started
    server.shutdown()
    server.server_close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def ask(connection: socket.socket, data: bytes = b"hello") -> bytes:
    """What comes back; less than `data` if the connection ends first."""
    got = b""
    try:
        connection.sendall(data)
        while len(got) < len(data) and (more := connection.recv(1 << 16)):
            got += more
    except ConnectionError:
        pass
    return got


def refused(proxy: Proxy) -> bool:
    try:
        with connect(proxy) as connection:
            return ask(connection) == b""
    except ConnectionError:
        return True


def test_everything_passes_and_ends_as_without_it(proxy: Proxy) -> None:
    data = bytes(range(256)) * 4096
    with connect(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        got = b""
        while len(got) < len(data):
            got += connection.recv(1 << 16)
        sender.join()
        assert got == data
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_what_is_delayed_comes_late(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        ask(connection)
        proxy.delay(0.1)
        started = time.monotonic()
        assert ask(connection) == b"hello"
        assert time.monotonic() - started >= 0.2


def test_a_cut_ends_the_connections_that_are_open(proxy: Proxy) -> None:
    with connect(proxy) as old:
        ask(old)
        assert proxy.cut() == 1
        assert ask(old) == b""
        with connect(proxy) as new:
            assert ask(new) == b"hello"


def test_nobody_gets_through_while_it_refuses(proxy: Proxy) -> None:
    proxy.refuse()
    assert refused(proxy)
    proxy.heal()
    with connect(proxy) as connection:
        assert ask(connection) == b"hello"


def test_half_open_connections_stay_deaf(proxy: Proxy) -> None:
    with connect(proxy) as old:
        ask(old)
        proxy.half_open()
        with connect(proxy) as new:
            for connection in (old, new):
                connection.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    ask(connection)
            proxy.heal()
            with pytest.raises(TimeoutError):
                ask(old)
        with connect(proxy) as healed:
            assert ask(healed) == b"hello"


@pytest.mark.parametrize("way", [*Way])
def test_what_is_truncated_ends_after_so_many_bytes(proxy: Proxy, way: Way) -> None:
    with connect(proxy) as connection:
        proxy.truncate(7, way=way)
        assert ask(connection) == b"hello"
        assert ask(connection, b"again") == (b"ag" if way is Way.DOWN else b"")
    assert refused(proxy)


def test_sockets_with_paths(proxy: Proxy, tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/s"
    with Proxy(proxy.address, listen=path), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(f"{tmp_path}/s")
        assert ask(connection) == b"hello"


def test_a_server_that_is_down_ends_the_connection(proxy: Proxy) -> None:
    with Proxy("127.0.0.1:1") as nowhere:
        assert refused(nowhere)


def test_nothing_is_left_of_connections_that_come_while_it_ends(proxy: Proxy) -> None:
    """A coroutine that is left in a closed loop runs its `finally` when garbage is collected, amid anything."""

    def come(to: Proxy) -> None:
        """Until nobody listens any more."""
        with contextlib.suppress(OSError):
            while True:
                connect(to).close()

    left = set[asyncio.Task[object]]()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):
            with Proxy(proxy.address) as ending:
                coming = pool.submit(come, ending)
                wait_until(lambda: ending.accepted > 5, seconds=5, what="connections come")
            coming.result()
            left |= asyncio.all_tasks(ending._loop)
    assert not left
