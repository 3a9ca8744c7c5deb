"""A port that is given to one process is not given to another before it can listen there."""

from __future__ import annotations

import subprocess
import sys

COUNT = 15
ASKS = f"""
import sys
from rookery.local import ports

ports.LOWEST = int(ports._RANGE.read_text().split()[0]) - {3 * COUNT}  # few to choose from, so that some come twice
print(*[ports.free_port() for _ in range({COUNT})], flush=True)
sys.stdin.read()
"""


def test_no_port_is_given_twice() -> None:
    argv = [sys.executable, "-c", ASKS]
    asking = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [int(port) for process in asking for port in process.stdout.readline().split()]  # type: ignore[union-attr]
    for process in asking:
        process.communicate()
    assert len(found) == 2 * COUNT
    assert len(set(found)) == 2 * COUNT


def test_one_is_given_again_when_its_process_has_ended() -> None:
    """There are fewer of them than these ask for together."""
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", ASKS], input="", capture_output=True, text=True, check=True)
        assert len(done.stdout.split()) == COUNT
