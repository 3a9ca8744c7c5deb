"""The contracts: generated code is what the protos say, and the protos say everything."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from tests.prerequisites import ROOT, lacking

PROTO = ROOT / "proto"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generated_files(root: Path) -> set[Path]:
    return {path.relative_to(root) for pattern in GENERATED for path in root.rglob(pattern)}


def test_the_committed_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PROTO / "generate.py"), str(tmp_path)], check=True)
    committed, fresh = generated_files(ROOT / "shared"), generated_files(tmp_path)
    assert committed == fresh
    different = [str(p) for p in fresh if not filecmp.cmp(ROOT / "shared" / p, tmp_path / p, shallow=False)]
    assert different == [], "run `make proto` and commit"


def test_buf_lint_is_clean() -> None:
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        lacking("buf")
    done = subprocess.run([buf, "lint"], cwd=PROTO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_field_says_whether_it_is_required_optional_or_output(tmp_path: Path) -> None:
    uncommented = [
        f"{file.name}: {name}"
        for file in descriptors(tmp_path / "all.pb").file
        if file.name.startswith("rookery/")
        for name, comment in fields(file)
        if not comment.strip().startswith(("Required.", "Optional.", "Output only.", "Input only.", "Identifier."))
    ]
    assert uncommented == []


def descriptors(path: Path) -> FileDescriptorSet:
    """All protos with their comments."""
    protos = [str(proto.relative_to(PROTO)) for proto in PROTO.rglob("*.proto")]
    include = Path(grpc_tools.__file__).parent / "_proto"
    common = ["protoc", f"-I{PROTO}", f"-I{include}", "--include_source_info", f"--descriptor_set_out={path}"]
    assert protoc.main([*common, *protos]) == 0
    return FileDescriptorSet.FromString(path.read_bytes())


def fields(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Every field of every message, nested ones too, with the comment above it."""
    comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}

    def inside(message: DescriptorProto, path: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        for index, field in enumerate(message.field):
            yield f"{message.name}.{field.name}", comments.get((*path, 2, index), "")
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from inside(nested, (*path, 3, index))

    for index, message in enumerate(file.message_type):
        yield from inside(message, (4, index))
