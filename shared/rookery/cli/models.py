"""`rookery models`: register teachers and students, choose policies."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from rookery.cli.options import DEFAULT_SERVER, Json, Server
from rookery.cli.render import show, show_list
from rookery.client import Client
from rookery.errors import CallFailed
from rookery.v1.model_service_pb2 import ROLE_STUDENT, ROLE_TEACHER, Limits, ModelSource, Profile, Role

app = typer.Typer(help="Teachers and students.", no_args_is_help=True)

TINY, TINY_GRIDS = "tiny", "tiny-grids"
BUILT_IN = {TINY: "model", TINY_GRIDS: "grids/model"}
"""Folders of the tiny models in their package."""


class RoleName(StrEnum):
    teacher = "teacher"
    student = "student"


ROLES = {RoleName.teacher: ROLE_TEACHER, RoleName.student: ROLE_STUDENT}


def resolve_source(model: str) -> str:
    """A folder as an absolute path; a built-in model's name as its folder; anything else, a hub name, as it is."""
    if model in BUILT_IN:
        spec = find_spec("rookery_tiny")
        if spec is not None and spec.origin:
            return str(Path(spec.origin).parent / BUILT_IN[model])
    path = Path(model)
    return str(path.resolve()) if path.is_dir() else model


def profile_name(name: str) -> str:
    return name if name.startswith("profiles/") else f"profiles/{name}"


@app.command("create")
def create(
    role: Annotated[RoleName, typer.Argument(help="What the model is used as.")],
    name: Annotated[str, typer.Argument(help="A name for the profile: a-z, 0-9 and '-'.")],
    model: Annotated[
        str,
        typer.Option(
            help="A hub name, a folder, s3://bucket/prefix, 'tiny', 'tiny-grids', or the endpoint's name for openai."
        ),
    ],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the hub.")] = "",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    engine: Annotated[str, typer.Option(help="transformers, vllm or openai.")] = "transformers",
    chat: Annotated[bool, typer.Option(help="Ask through the model's chat template: for instruct models.")] = False,
    max_passage: Annotated[int, typer.Option(help="Longest passage, in characters; 0 takes the default.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest self-edit or answer; 0 takes the default.")] = 0,
    max_rank: Annotated[int, typer.Option(help="Highest LoRA rank that the engine serves; 0 takes the default.")] = 0,
    trials_per_job: Annotated[int, typer.Option(help="Most trials in a train job; 0 takes the default.")] = 0,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="It is no error if it is there already.")] = False,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Register a model as a teacher or as a student."""
    profile = Profile(
        name=profile_name(name),
        role=ROLES[role],
        model=ModelSource(source=resolve_source(model), revision=revision),
        engine=engine,
        dtype=dtype,
        chat=chat,
        limits=Limits(
            max_passage_characters=max_passage,
            max_new_tokens=max_new_tokens,
            max_lora_rank=max_rank,
            trials_per_job=trials_per_job,
        ),
    )
    with Client(server) as client:
        _show(ensure_profile(client, profile) if if_absent else client.create_profile(profile), as_json=json)


def ensure_profile(client: Client, profile: Profile) -> Profile:
    """As it is now; made, if it is absent. Raises CallFailed, NAME_TAKEN, if another has its name."""
    try:
        return client.create_profile(profile)
    except CallFailed as error:
        if error.reason != "NAME_TAKEN":
            raise
        found = client.get_profile(profile.name)
        if not is_as_asked(found, profile):
            raise
        return found


def is_as_asked(found: Profile, asked: Profile) -> bool:
    """Whether a profile is what was asked for, as far as that was said."""
    limits = ((getattr(found.limits, f.name), getattr(asked.limits, f.name)) for f in Limits.DESCRIPTOR.fields)
    texts = ((getattr(found, f), getattr(asked, f)) for f in ("engine", "dtype"))
    same = all(getattr(found, f) == getattr(asked, f) for f in ("name", "role", "model", "chat"))
    return same and all(has == wants for has, wants in (*limits, *texts) if wants)


@app.command("get")
def get(name: str, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Show one profile."""
    with Client(server) as client:
        _show(client.get_profile(profile_name(name)), as_json=json)


@app.command("list")
def list_(server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """List all profiles."""
    with Client(server) as client:
        profiles = list(client.list_profiles())
    rows = [(p.name, _role(p.role), p.model.source, p.engine, p.dtype, p.active_policy) for p in profiles]
    columns = ("name", "role", "model", "engine", "dtype", "active policy")
    show_list(profiles, as_json=json, columns=columns, rows=rows)


@app.command("policies")
def policies(name: str, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """List the versions of a teacher."""
    with Client(server) as client:
        found = list(client.list_policies(profile_name(name)))
    rows = [(p.name, p.adapter or "the base model", p.run) for p in found]
    show_list(found, as_json=json, columns=("name", "adapter", "made by"), rows=rows)


@app.command("activate")
def activate(
    policy: Annotated[str, typer.Argument(help="profiles/NAME/policies/VERSION")],
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Have new work start from a policy."""
    with Client(server) as client:
        _show(client.set_active_policy(policy), as_json=json)


def _role(role: Role.ValueType) -> str:
    return Role.Name(role).removeprefix("ROLE_").lower()


def _show(profile: Profile, *, as_json: bool) -> None:
    limits = profile.limits
    lines = [
        ("name", profile.name),
        ("role", _role(profile.role)),
        ("model", profile.model.source + (f"@{profile.model.revision}" if profile.model.revision else "")),
        ("engine", f"{profile.engine}, {profile.dtype}"),
        ("asked", "through its chat template" if profile.chat else "plainly"),
        ("longest passage", f"{limits.max_passage_characters:,} characters"),
        ("longest text", f"{limits.max_new_tokens:,} tokens"),
        ("highest rank", str(limits.max_lora_rank)),
    ]
    if profile.active_policy:
        lines.append(("active policy", profile.active_policy))
    show(profile, as_json=as_json, lines=lines)
