"""A name server that knows one name, and whose answers a test may change."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_A, _IN = 1, 1


class NameServer:
    """Answers every question for an IPv4 address with `addresses`, and all others with nothing."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        """Until a question that is empty."""
        while True:
            query, client = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5
        kind, _ = struct.unpack("!HH", query[end - 4 : end])
        found = self.addresses if kind == _A else ()
        self.asked += kind == _A
        header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        records = (struct.pack("!HHHIH", 0xC00C, _A, _IN, 0, 4) + socket.inet_aton(address) for address in found)
        return header + query[12:end] + b"".join(records)


@contextmanager
def start_name_server(*addresses: str) -> Iterator[NameServer]:
    server = NameServer(addresses)
    try:
        yield server
    finally:
        server.close()
