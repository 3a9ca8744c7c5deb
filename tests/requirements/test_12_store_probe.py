"""Requirement 12: a service finds out at its start whether its store does what it needs, and does not start if not.

Of two servers one writes on a condition and the other ignores it without a word. Either will do: adapters are named by
what is in them, so that no write needs a condition.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3
from pydantic import SecretStr

from rookery_shared.store.adapters import Origin, adapter_name, check_stored, publish
from rookery_shared.store.probing import open_store
from tests.adapter_files import write_adapter_files
from tests.prerequisites import lacking
from tests.requirements.removal import Removal
from tests.servers.s3 import S3Server, start_rclone

PROBING = "shared/rookery_shared/store/probing.py"
REMOVALS = [
    Removal(
        what="no start with a store that fails the probe",
        file=PROBING,
        old="        raise SystemExit(1) from None\n",
        new="        return store\n",
        test="test_a_server_that_says_yes_to_everything_is_found_out",
    ),
    Removal(
        what="the probe of writing",
        file=PROBING,
        old="            check_writes(store)\n",
        new="            pass\n",
        test="test_a_store_that_cannot_be_written_to_is_found_out",
    ),
    Removal(
        what="names that are digests, which need no condition",
        file="shared/rookery_shared/store/adapters.py",
        old="    name = adapter_name(manifest.digest)\n    fault_point(",
        new='    name = adapter_name("0" * 64)\n    fault_point(',
        test="test_either_server_will_do[rclone_server-200]",
    ),
]


def write_if_new(server: S3Server, key: str) -> int:
    """The status of a write on the condition that there is nothing yet."""
    url = server.client().presigned_put_object(server.bucket, key, expires=timedelta(minutes=1))
    return urllib3.request("PUT", url, body=b"x", headers={"If-None-Match": "*"}).status


@pytest.mark.parametrize(("server", "second"), [("moto_server", 412), ("rclone_server", 200)])
def test_either_server_will_do(server: str, second: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    running: S3Server = request.getfixturevalue(server)
    key = uuid.uuid4().hex
    assert [write_if_new(running, key), write_if_new(running, key)] == [200, second], "what the condition is worth"
    store = open_store(running.store_settings(), writes=True)
    assert [*store.keys("")] == [], "the probe leaves nothing"

    def publish_one(i: int) -> str:
        """Two different adapters, each by several at once."""
        folder = write_adapter_files(tmp_path / str(i), fill=b"\x3c" if i % 2 else b"\x3b")
        origin = Origin(base_model="b", base_revision="", rank=8, job=f"j{i % 2}", epoch=1, seed=0)
        return adapter_name(publish(store, folder, origin).digest)

    with ThreadPoolExecutor(8) as threads:
        names = {*threads.map(publish_one, range(8))}
    assert len(names) == 2
    for name in names:
        check_stored(store, name)


def test_wrong_keys_are_found_out(rclone_server: S3Server) -> None:
    with pytest.raises(SystemExit):
        open_store(rclone_server.store_settings(s3_secret_key=SecretStr("wrong")), writes=False)


def test_a_store_that_cannot_be_written_to_is_found_out(tmp_path: Path) -> None:
    """By those who write; for others it will do."""
    with start_rclone(tmp_path, "--read-only") as server:
        if server is None:
            lacking("rclone")
        open_store(server.store_settings(), writes=False)
        with pytest.raises(SystemExit):
            open_store(server.store_settings(), writes=True)


@pytest.fixture
def portal() -> Iterator[str]:
    """Where a server answers every request with the same page and "200 OK", as networks do that want a login first."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            page = b"<html>Please log in.</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_GET = do_PUT = do_POST = do_DELETE = _answer

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("writes", [False, True])
def test_a_server_that_says_yes_to_everything_is_found_out(portal: str, writes: bool) -> None:
    yes = S3Server(endpoint=portal, access_key="key-key", secret_key="secret-secret", bucket="rookery")
    with pytest.raises(SystemExit):
        open_store(yes.store_settings(), writes=writes)
