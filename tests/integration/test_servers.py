"""The servers that tests start stay up while their tests run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from tests.servers.postgres import make_database, start_postgres
from tests.waiting import wait_until


def test_postgresql_recovers_beside_another_pytest(tmp_path: Path) -> None:
    """As root it runs as another user, to whom every pytest that starts shuts the folder of all; and as a process of it
    dies it looks for its own again."""
    (tmp_path / "test_other.py").write_text("def test_nothing(tmp_path):\n    pass\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_other.py"]
    with start_postgres() as url:
        subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True)
        engine = create_engine(url)
        with engine.connect() as connection:
            os.kill(connection.execute(text("SELECT pg_backend_pid()")).scalar_one(), signal.SIGKILL)
            connection.invalidate()
        engine.dispose()
        wait_until(lambda: _makes_a_database(url), seconds=10, what="connections again")


def _makes_a_database(url: str) -> bool:
    try:
        return bool(make_database(url))
    except OperationalError:
        return False
