"""RunService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery.v1 import run_service_pb2 as pb
from rookery.v1.run_service_pb2_grpc import RunServiceServicer
from rookery_coordinator import rounds, submissions
from rookery_coordinator.api.base import Units, page
from rookery_coordinator.api.messages import run_message, timestamp
from rookery_coordinator.api.requests import run_plan_from_proto
from rookery_coordinator.api.self_edits import list_self_edits
from rookery_coordinator.api.watching import Feed
from rookery_coordinator.tables import Run
from rookery_coordinator.types import State
from rookery_coordinator.works import find_run
from rookery_shared.rpc.server import RpcContext
from rookery_shared.wire import context_from_proto


class RunApi(RunServiceServicer):
    def __init__(self, units: Units, feed: Feed) -> None:
        self._units = units
        self._feed = feed

    async def CreateRun(self, request: pb.CreateRunRequest, context: RpcContext) -> pb.Run:
        def make(session: Session) -> tuple[str, pb.Run]:
            asked = request.run
            plan = run_plan_from_proto(session, asked)
            train = [context_from_proto(message) for message in asked.train_contexts]
            test = [context_from_proto(message) for message in asked.test_contexts]
            run = submissions.create_run(
                session, teacher=asked.teacher, student=asked.student, plan=plan, train=train, test=test
            )
            session.flush()
            return run.name, _show(session, run.name)

        return await self._units.create(request.request_id, make=make, show=_show)

    async def GetRun(self, request: pb.GetRunRequest, context: RpcContext) -> pb.Run:
        return await self._units.read(lambda session: _show(session, request.name))

    async def ListRuns(self, request: pb.ListRunsRequest, context: RpcContext) -> pb.ListRunsResponse:
        def read(session: Session) -> pb.ListRunsResponse:
            rows, token = page(
                session,
                select(Run),
                order=(Run.create_time, Run.name),
                newest_first=True,
                size=request.page_size,
                token=request.page_token,
            )
            runs = [run_message(session, row, full=False) for row in rows]
            return pb.ListRunsResponse(runs=runs, next_page_token=token)

        return await self._units.read(read)

    async def ListSelfEdits(self, request: pb.ListSelfEditsRequest, context: RpcContext) -> pb.ListSelfEditsResponse:
        return await self._units.read(lambda session: list_self_edits(session, request))

    async def CancelRun(self, request: pb.CancelRunRequest, context: RpcContext) -> pb.Run:
        return await self._change(request.name, lambda session, run: rounds.end_work(session, run, State.CANCELLED))

    async def PauseRun(self, request: pb.PauseRunRequest, context: RpcContext) -> pb.Run:
        return await self._change(request.name, rounds.pause_work)

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: RpcContext) -> pb.Run:
        return await self._change(request.name, rounds.resume_work)

    async def _change(self, name: str, change: Callable[[Session, Run], None]) -> pb.Run:
        def unit(session: Session) -> pb.Run:
            change(session, find_run(session, name, lock=True))
            session.flush()
            return _show(session, name)

        return await self._units.write(unit)

    async def WatchRun(self, request: pb.WatchRunRequest, context: RpcContext) -> AsyncIterator[pb.RunEvent]:
        async for events in self._feed.watch(request.name, after=request.after_sequence):
            now = await self._units.read(lambda session: _show(session, request.name))
            for event in events:
                yield pb.RunEvent(sequence=event.sequence, time=timestamp(event.time), message=event.message, run=now)


def _show(session: Session, name: str) -> pb.Run:
    return run_message(session, find_run(session, name), full=True)
