"""The device that a worker's jobs need."""

from __future__ import annotations

import subprocess
import sys

from rookery_shared.errors import NoDevice
from rookery_shared.log import get_logger


def require_device(wanted: str) -> None:
    """Look for it in a process of its own, for a worker has no torch: one that would fail each job must not take any.

    Raises SystemExit.
    """
    if not wanted:
        return
    argv = [sys.executable, "-m", "rookery_engines.devices", wanted]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        get_logger().error("cannot go on", reason=NoDevice.reason, message=done.stderr.strip())
        raise SystemExit(1)
