"""Generate the committed stubs: `python proto/generate.py [FOLDER]`, by default into the source root that holds them.

Messages and services with grpcio-tools, their types with mypy-protobuf. The versions are pinned because their output is
committed, and a test regenerates and compares it.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PINNED = {"grpcio-tools": "1.76.", "mypy-protobuf": "5.1."}


def generate(out: Path) -> None:
    """Raises SystemExit if a tool has another version or a proto does not compile."""
    for tool, wanted in PINNED.items():
        if not version(tool).startswith(wanted):
            raise SystemExit(f"{tool} is {version(tool)}; the committed stubs are made with {wanted}*")
    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    services = [proto for proto in protos if proto.endswith("_service.proto")]
    include = Path(grpc_tools.__file__).parent / "_proto"
    beside = Path(sys.executable).parent  # the plug-ins of this environment, active or not
    plugins = [f"--plugin={name}={beside / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    common = ["protoc", f"-I{ROOT}", f"-I{include}", *plugins]
    for arguments in (
        [f"--python_out={out}", f"--mypy_out=quiet:{out}", *protos],
        [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *services],
    ):
        if protoc.main([*common, *arguments]) != 0:
            raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared")
