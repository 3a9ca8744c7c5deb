"""Where models go. `python -m rookery_engines.devices cuda` says whether they can."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from rookery_shared.errors import NoDevice
from rookery_shared.log import get_logger

if TYPE_CHECKING:
    import torch


def find_device(wanted: str) -> torch.device:
    """`cpu` or `cuda`; the GPU if there is one for an empty name. Raises NoDevice."""
    import torch  # not with this module: workers have none

    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        is_for_cpu = torch.version.cuda is None and torch.version.hip is None
        raise NoDevice("torch was built for the CPU alone" if is_for_cpu else "torch finds no GPU that it can use")
    return torch.device(wanted or ("cuda" if has_gpu else "cpu"))


def require_device(wanted: str) -> None:
    """Look for it in a process of its own: a worker that would fail each of its jobs must not take any.

    Raises SystemExit.
    """
    if not wanted:
        return
    done = subprocess.run([sys.executable, "-m", __name__, wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        get_logger().error("cannot go on", reason=NoDevice.reason, message=done.stderr.strip())
        raise SystemExit(1)


def main() -> None:
    try:
        find_device(sys.argv[1])
    except NoDevice as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
