"""ModelService."""

from __future__ import annotations

import re

from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery.v1 import model_service_pb2 as pb
from rookery.v1.model_service_pb2_grpc import ModelServiceServicer
from rookery_coordinator import policies, submissions
from rookery_coordinator.api.base import Units, page
from rookery_coordinator.api.messages import policy_message, profile_message
from rookery_coordinator.api.requests import check_profile, limits_from_proto, profile_role
from rookery_coordinator.tables import Policy, Profile
from rookery_coordinator.types import Role
from rookery_coordinator.works import find_profile
from rookery_shared.errors import InvalidField
from rookery_shared.rpc.server import RpcContext

_POLICY_NAME = re.compile(r"(?P<profile>profiles/[^/]+)/policies/(?P<version>\d{1,9})")


class ModelApi(ModelServiceServicer):
    def __init__(self, units: Units) -> None:
        self._units = units

    async def CreateProfile(self, request: pb.CreateProfileRequest, context: RpcContext) -> pb.Profile:
        def make(session: Session) -> tuple[str, pb.Profile]:
            asked = request.profile
            check_profile(asked)
            profile = submissions.create_profile(
                session,
                name=asked.name,
                role=profile_role(asked),
                source=asked.model.source,
                revision=asked.model.revision,
                engine=asked.engine or "transformers",
                dtype=asked.dtype or "float32",
                chat=asked.chat,
                limits=limits_from_proto(asked.limits),
            )
            return profile.name, profile_message(profile)

        return await self._units.create(request.request_id, make=make, show=_show)

    async def GetProfile(self, request: pb.GetProfileRequest, context: RpcContext) -> pb.Profile:
        return await self._units.read(lambda session: _show(session, request.name))

    async def ListProfiles(self, request: pb.ListProfilesRequest, context: RpcContext) -> pb.ListProfilesResponse:
        def read(session: Session) -> pb.ListProfilesResponse:
            order = (Profile.create_time, Profile.name)
            rows, token = page(session, select(Profile), order=order, size=request.page_size, token=request.page_token)
            return pb.ListProfilesResponse(profiles=[profile_message(row) for row in rows], next_page_token=token)

        return await self._units.read(read)

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: RpcContext) -> pb.ListPoliciesResponse:
        def read(session: Session) -> pb.ListPoliciesResponse:
            profile = find_profile(session, request.parent, role=Role.TEACHER)
            query = select(Policy).where(Policy.profile == profile.name)
            rows, token = page(
                session, query, order=(Policy.version,), size=request.page_size, token=request.page_token
            )
            return pb.ListPoliciesResponse(policies=[policy_message(row) for row in rows], next_page_token=token)

        return await self._units.read(read)

    async def SetActivePolicy(self, request: pb.SetActivePolicyRequest, context: RpcContext) -> pb.Profile:
        def change(session: Session) -> pb.Profile:
            match = _POLICY_NAME.fullmatch(request.policy)
            if match is None:
                form = "profiles/{profile}/policies/{version}"
                raise InvalidField(f"policy must be {form}, not {request.policy!r}", field="policy")
            profile = find_profile(session, match["profile"], role=Role.TEACHER)
            policies.set_active(session, profile, int(match["version"]))
            return profile_message(profile)

        return await self._units.write(change)


def _show(session: Session, name: str) -> pb.Profile:
    return profile_message(find_profile(session, name))
