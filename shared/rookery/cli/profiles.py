"""Which teacher and student a command uses when it is not told."""

from __future__ import annotations

import grpc

from rookery.cli.models import ROLES, RoleName, profile_name
from rookery.client import Client
from rookery.errors import RookeryError


class WhichProfile(RookeryError):
    """There is none to choose, or more than one."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "WHICH_PROFILE"


def choose(client: Client, *, teacher: str, student: str) -> tuple[str, str]:
    """The named profiles, or the only ones there are. Raises WhichProfile."""
    return _choose(client, RoleName.teacher, teacher), _choose(client, RoleName.student, student)


def _choose(client: Client, role: RoleName, name: str) -> str:
    if name:
        return profile_name(name)
    found = [profile.name for profile in client.list_profiles() if profile.role == ROLES[role]]
    if len(found) == 1:
        return found[0]
    if not found:
        hint = f"register one: rookery models create {role.value} NAME --model MODEL"
        raise WhichProfile(f"there is no {role.value}; {hint}", role=role.value)
    raise WhichProfile(f"say --{role.value}, one of {', '.join(found)}", role=role.value)
