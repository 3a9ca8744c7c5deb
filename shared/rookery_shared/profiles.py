"""How a process that holds a model learns which: it asks the coordinator for its profile."""

from __future__ import annotations

from rookery.transport import call, open_channel
from rookery.v1 import model_service_pb2
from rookery.v1.model_service_pb2_grpc import ModelServiceStub

STARTUP_SECONDS = 300.0


def fetch_profile(target: str, name: str) -> model_service_pb2.Profile:
    """Waits for the coordinator. Raises CallFailed with UNKNOWN_PROFILE if there is no such profile."""
    with open_channel(target) as channel:
        request = model_service_pb2.GetProfileRequest(name=name)
        return call(ModelServiceStub(channel).GetProfile, request, seconds=STARTUP_SECONDS, patient=True)


def fetch_active_adapter(target: str, profile: model_service_pb2.Profile) -> str:
    """The adapter of a teacher's active policy; empty for the base model."""
    token = ""
    with open_channel(target) as channel:
        while True:
            request = model_service_pb2.ListPoliciesRequest(parent=profile.name, page_size=1000, page_token=token)
            response = call(ModelServiceStub(channel).ListPolicies, request)
            for policy in response.policies:
                if policy.name == profile.active_policy:
                    return policy.adapter
            token = response.next_page_token
            if not token:
                return ""
