"""The coordinator's worker between a teacher and the coordinator: what it makes of a teacher's texts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from rookery.internal.v1 import job_service_pb2 as jobs_pb
from rookery.v1 import teacher_service_pb2 as pb
from rookery.v1.teacher_service_pb2_grpc import TeacherServiceServicer, add_TeacherServiceServicer_to_server
from rookery_coordinator.settings import WorkerSettings
from rookery_coordinator.worker import Remote
from rookery_shared.errors import Preempted
from rookery_shared.grids.configuration import Configuration, Strategy, write_configuration
from rookery_shared.jobs.lease import Lease
from rookery_shared.rpc.server import RpcContext, Servicer
from rookery_shared.types import Context, Demonstration, Question
from rookery_shared.wire import context_to_proto
from tests.requirements.serving import serve

CONFIGURATION = write_configuration(Configuration(groups=(), strategy=Strategy.ALL, learning_rate=5e-4, epochs=1))
TASK = Context(
    title="mirror",
    demonstrations=tuple(Demonstration(input=f"{i} 0", output=f"0 {i}") for i in (1, 2, 3)),
    questions=(Question(question="4 0", answer="0 4"),),
)


class Scripted(TeacherServiceServicer):
    """Writes a configuration for seed 1 and no JSON for any other, the last assignment first."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateSelfEditsRequest] = []

    async def GenerateSelfEdits(
        self, request: pb.GenerateSelfEditsRequest, context: RpcContext
    ) -> AsyncIterator[pb.GenerateSelfEditsResponse]:
        self.requests.append(request)
        for place, assignment in reversed([*enumerate(request.assignments)]):
            for index, seed in enumerate(assignment.seeds):
                text = CONFIGURATION if seed == 1 else "Here it is:"
                yield pb.GenerateSelfEditsResponse(assignment=place, index=index, text=text, seed=seed, draws=1)

    async def ActivatePolicy(self, request: pb.ActivatePolicyRequest, context: RpcContext) -> pb.ServingState:
        raise NotImplementedError

    async def GetServingState(self, request: pb.GetServingStateRequest, context: RpcContext) -> pb.ServingState:
        raise NotImplementedError


@pytest.fixture
def teacher() -> Scripted:
    return Scripted()


@pytest.fixture
def remote(teacher: Scripted) -> Iterator[Remote]:
    servicer = Servicer(
        add=lambda server: add_TeacherServiceServicer_to_server(teacher, server),
        descriptor=pb.DESCRIPTOR.services_by_name["TeacherService"],
    )
    with serve(servicer) as server:
        yield Remote(WorkerSettings(teacher_target=server.target, evaluator_target=server.target))


def claim(domain: str) -> jobs_pb.ClaimResponse:
    claimed = jobs_pb.ClaimResponse()
    claimed.generate.teacher, claimed.generate.domain = "profiles/teacher", domain
    for seeds in ([1, 2], [3, 1]):
        claimed.generate.items.add(context=context_to_proto(TASK), seeds=seeds)
    return claimed


def test_every_self_edit_is_reported_with_its_fault(remote: Remote) -> None:
    result = remote.generate(claim("few_shot"), Lease(job="j", epoch=1))
    faults = [[self_edit.fault for self_edit in item.self_edits] for item in result.generated.items]
    [[none, bad], [worse, no]] = faults
    assert none == no == ""
    assert "JSON" in bad
    assert "JSON" in worse


def test_any_text_can_be_learned_of_a_passage(remote: Remote) -> None:
    result = remote.generate(claim("knowledge"), Lease(job="j", epoch=1))
    assert not any(self_edit.fault for item in result.generated.items for self_edit in item.self_edits)


def test_a_recipe_with_a_step_limit_reaches_the_teacher_and_makes_faults(remote: Remote, teacher: Scripted) -> None:
    limited = claim("few_shot")
    limited.generate.student_recipe.max_steps = 1
    result = remote.generate(limited, Lease(job="j", epoch=1))
    faults = {
        self_edit.fault for item in result.generated.items for self_edit in item.self_edits if self_edit.text[0] == "{"
    }
    assert faults == {"1 epochs of 4 examples or more are over 1 steps"}
    assert teacher.requests[-1].student_recipe.max_steps == 1
    limited = claim("knowledge")
    limited.generate.student_recipe.max_steps = 19
    result = remote.generate(limited, Lease(job="j", epoch=1))
    faults = {self_edit.fault for item in result.generated.items for self_edit in item.self_edits}
    assert faults == {"10 epochs of 2 sequences are over 19 steps"}


class Stopping(Lease):
    """Must make way at a look at it after some."""

    looks = 0

    def check(self) -> None:
        self.looks += 1
        if self.looks > 5:
            raise Preempted("make way")


def test_looking_for_faults_ends_when_the_job_must(remote: Remote) -> None:
    lease = Stopping(job="j", epoch=1)
    with pytest.raises(Preempted):
        remote.generate(claim("few_shot"), lease)
    assert (lease.done, lease.looks) == (4, 6), "after all texts have come, at the second"
