"""AdaptationService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery.v1 import adaptation_service_pb2 as pb
from rookery.v1.adaptation_service_pb2_grpc import AdaptationServiceServicer
from rookery_coordinator import rounds, submissions
from rookery_coordinator.api.base import Units, page
from rookery_coordinator.api.batches import Batches
from rookery_coordinator.api.messages import adaptation_message, new_adaptation_message, timestamp
from rookery_coordinator.api.requests import adaptation_plan_from_proto
from rookery_coordinator.api.watching import Feed
from rookery_coordinator.tables import Adaptation
from rookery_coordinator.types import State
from rookery_coordinator.works import copy_profiles, find_adaptation
from rookery_shared.rpc.server import RpcContext
from rookery_shared.wire import context_from_proto


class AdaptationApi(AdaptationServiceServicer):
    def __init__(self, units: Units, feed: Feed) -> None:
        self._units = units
        self._batches: Batches[pb.Adaptation] = Batches(units)
        self._feed = feed

    async def CreateAdaptation(self, request: pb.CreateAdaptationRequest, context: RpcContext) -> pb.Adaptation:
        def make(session: Session) -> tuple[str, pb.Adaptation]:
            asked = request.adaptation
            copy_profiles(session, [asked.teacher, asked.student])
            plan = adaptation_plan_from_proto(session, asked)
            taught = context_from_proto(asked.context)
            adaptation = submissions.create_adaptation(
                session, teacher=asked.teacher, student=asked.student, plan=plan, context=taught
            )
            return adaptation.name, new_adaptation_message(adaptation, plan, taught)

        return await self._batches.create(request.request_id, make=make, show=_show)

    async def GetAdaptation(self, request: pb.GetAdaptationRequest, context: RpcContext) -> pb.Adaptation:
        return await self._units.read(lambda session: _show(session, request.name))

    async def ListAdaptations(
        self, request: pb.ListAdaptationsRequest, context: RpcContext
    ) -> pb.ListAdaptationsResponse:
        def read(session: Session) -> pb.ListAdaptationsResponse:
            rows, token = page(
                session,
                select(Adaptation),
                order=(Adaptation.create_time, Adaptation.name),
                newest_first=True,
                size=request.page_size,
                token=request.page_token,
            )
            adaptations = [adaptation_message(session, row, full=False) for row in rows]
            return pb.ListAdaptationsResponse(adaptations=adaptations, next_page_token=token)

        return await self._units.read(read)

    async def CancelAdaptation(self, request: pb.CancelAdaptationRequest, context: RpcContext) -> pb.Adaptation:
        return await self._change(
            request.name, lambda session, adaptation: rounds.end_work(session, adaptation, State.CANCELLED)
        )

    async def PauseAdaptation(self, request: pb.PauseAdaptationRequest, context: RpcContext) -> pb.Adaptation:
        return await self._change(request.name, rounds.pause_work)

    async def ResumeAdaptation(self, request: pb.ResumeAdaptationRequest, context: RpcContext) -> pb.Adaptation:
        return await self._change(request.name, rounds.resume_work)

    async def _change(self, name: str, change: Callable[[Session, Adaptation], None]) -> pb.Adaptation:
        def unit(session: Session) -> pb.Adaptation:
            change(session, find_adaptation(session, name, lock=True))
            session.flush()
            return _show(session, name)

        return await self._units.write(unit)

    async def WatchAdaptation(
        self, request: pb.WatchAdaptationRequest, context: RpcContext
    ) -> AsyncIterator[pb.AdaptationEvent]:
        async for events in self._feed.watch(request.name, after=request.after_sequence):
            now = await self._units.read(lambda session: _show(session, request.name))
            for event in events:
                yield pb.AdaptationEvent(
                    sequence=event.sequence, time=timestamp(event.time), message=event.message, adaptation=now
                )


def _show(session: Session, name: str) -> pb.Adaptation:
    return adaptation_message(session, find_adaptation(session, name), full=True)
