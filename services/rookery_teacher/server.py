"""TeacherService: translates between messages and `writing`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict

from rookery.v1 import teacher_service_pb2 as pb
from rookery.v1.teacher_service_pb2_grpc import TeacherServiceServicer, add_TeacherServiceServicer_to_server
from rookery_engines.base import Metered
from rookery_engines.types import Finish
from rookery_shared.domains import DEFAULT_DOMAIN, check_style, find_domain
from rookery_shared.errors import InvalidField
from rookery_shared.faults import Point, fault_point
from rookery_shared.rpc.server import RpcContext, Servicer
from rookery_shared.types import MAX_REDRAWS
from rookery_shared.wire import context_from_proto, recipe_from_proto, sampling_from_proto
from rookery_teacher.writing import Assignment, Teacher

ACTIVATE_SECONDS = 300.0
"""To fetch a policy and have it answer."""

_FINISH = {
    Finish.STOP: pb.GenerateSelfEditsResponse.FINISH_REASON_STOP,
    Finish.LENGTH: pb.GenerateSelfEditsResponse.FINISH_REASON_LENGTH,
}


class TeacherApi(TeacherServiceServicer):
    def __init__(self, teacher: Teacher, *, max_new_tokens: int) -> None:
        self._teacher = teacher
        self._max_new_tokens = max_new_tokens

    def servicer(self) -> Servicer:
        return Servicer(
            add=lambda server: add_TeacherServiceServicer_to_server(self, server),
            descriptor=pb.DESCRIPTOR.services_by_name["TeacherService"],
            seconds={"ActivatePolicy": ACTIVATE_SECONDS},
        )

    async def GenerateSelfEdits(
        self, request: pb.GenerateSelfEditsRequest, context: RpcContext
    ) -> AsyncIterator[pb.GenerateSelfEditsResponse]:
        domain = request.domain or DEFAULT_DOMAIN
        style = request.style or find_domain(domain).styles[0]
        check_style(domain, style, field="style")
        assignments = [
            Assignment(context=context_from_proto(a.context), seeds=list(a.seeds), questions=a.questions)
            for a in request.assignments
        ]
        if request.redraws > MAX_REDRAWS:
            raise InvalidField(f"redraws must be in [0, {MAX_REDRAWS}]", field="redraws")
        written = self._teacher.write(
            assignments,
            adapter=request.adapter,
            domain=domain,
            style=style,
            sampling=sampling_from_proto(request.sampling, max_new_tokens=self._max_new_tokens),
            recipe=recipe_from_proto(
                request.student_recipe, default=find_domain(domain).student_recipe, field="student_recipe"
            ),
            redraws=request.redraws,
        )
        async with aclosing(written) as texts:
            async for text in texts:
                yield pb.GenerateSelfEditsResponse(
                    assignment=text.assignment,
                    index=text.index,
                    prompt=text.prompt,
                    text=text.generation.text,
                    seed=text.seed,
                    finish_reason=_FINISH[text.generation.finish],
                    prompt_tokens=text.generation.prompt_tokens,
                    completion_tokens=text.generation.completion_tokens,
                    adapter=text.adapter,
                    draws=text.draws,
                )
                fault_point(Point.WRITTEN)

    async def ActivatePolicy(self, request: pb.ActivatePolicyRequest, context: RpcContext) -> pb.ServingState:
        if not request.adapter:
            raise InvalidField("adapter is empty; the base model is called 'base'", field="adapter")
        await self._teacher.activate(request.adapter)
        return self._state()

    async def GetServingState(self, request: pb.GetServingStateRequest, context: RpcContext) -> pb.ServingState:
        return self._state()

    def _state(self) -> pb.ServingState:
        engine = self._teacher.engine
        return pb.ServingState(
            base_model=str(engine.identity),
            active_adapter=self._teacher.active,
            loaded_adapters=engine.loaded(),
            engine=engine.name,
            usage=pb.Usage(**asdict(engine.usage)) if isinstance(engine, Metered) else None,
        )
