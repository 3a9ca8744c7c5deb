"""Where models go. `python -m rookery_engines.devices cuda` says whether they can."""

from __future__ import annotations

import sys

import torch

from rookery_shared.errors import NoDevice


def find_device(wanted: str) -> torch.device:
    """`cpu` or `cuda`; the GPU if there is one for an empty name. Raises NoDevice."""
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        is_for_cpu = torch.version.cuda is None and torch.version.hip is None
        raise NoDevice("torch was built for the CPU alone" if is_for_cpu else "torch finds no GPU that it can use")
    return torch.device(wanted or ("cuda" if has_gpu else "cpu"))


def main() -> None:
    try:
        find_device(sys.argv[1])
    except NoDevice as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
