"""JobService, for workers."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from sqlalchemy.orm import Session

from rookery.internal.v1 import job_service_pb2 as pb
from rookery.internal.v1.job_service_pb2_grpc import JobServiceServicer
from rookery_coordinator import integrity, leases, outcomes, results, rounds
from rookery_coordinator.api.base import Units
from rookery_coordinator.api.work import fill_work
from rookery_coordinator.tables import Job
from rookery_coordinator.types import Failure
from rookery_shared.errors import InvalidField
from rookery_shared.rpc.server import RpcContext
from rookery_shared.types import Question
from rookery_shared.wire import training_from_proto


class JobApi(JobServiceServicer):
    def __init__(self, units: Units, *, lease_seconds: float) -> None:
        self._units = units
        self._lease_seconds = lease_seconds

    async def Claim(self, request: pb.ClaimRequest, context: RpcContext) -> pb.ClaimResponse:
        def claim(session: Session) -> pb.ClaimResponse:
            job = leases.claim(
                session,
                request.job,
                epoch=request.epoch,
                worker=request.worker,
                lease_seconds=self._lease_seconds,
            )
            lease = Duration()
            lease.FromTimedelta(timedelta(seconds=self._lease_seconds))
            response = pb.ClaimResponse(lease=lease, parent=job.parent, alone=leases.runs_alone(job))
            fill_work(session, job, response)
            return response

        return await self._units.write(claim)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: RpcContext) -> pb.HeartbeatResponse:
        def beat(session: Session) -> pb.HeartbeatResponse:
            cancelled = leases.heartbeat(
                session,
                request.job,
                epoch=request.epoch,
                lease_seconds=self._lease_seconds,
                done=request.done,
                total=request.total,
            )
            return pb.HeartbeatResponse(cancelled=cancelled)

        return await self._units.write(beat)

    async def Complete(self, request: pb.CompleteRequest, context: RpcContext) -> pb.CompleteResponse:
        def complete(session: Session) -> pb.CompleteResponse:
            outcomes.complete(session, request.job, epoch=request.epoch, apply=_apply_for(request))
            return pb.CompleteResponse()

        return await self._units.write(complete)

    async def Fail(self, request: pb.FailRequest, context: RpcContext) -> pb.FailResponse:
        def fail(session: Session) -> pb.FailResponse:
            outcomes.report_failure(
                session,
                request.job,
                epoch=request.epoch,
                failure=Failure(reason=request.reason, message=_storable(request.message)),
                retryable=request.retryable,
                died=request.process_died,
            )
            integrity.record_refusal(session, request.reason, request.message, request.metadata, by=request.job)
            return pb.FailResponse()

        return await self._units.write(fail)

    async def Release(self, request: pb.ReleaseRequest, context: RpcContext) -> pb.ReleaseResponse:
        def release(session: Session) -> pb.ReleaseResponse:
            outcomes.release(session, request.job, epoch=request.epoch)
            return pb.ReleaseResponse()

        return await self._units.write(release)


def _apply_for(request: pb.CompleteRequest) -> outcomes.Apply:
    """What the result in the request does to the rows."""
    match request.WhichOneof("result"):
        case "generated":
            written = [_written(item) for item in request.generated.items]
            return lambda session, job: rounds.apply_generated(session, job, written)
        case "trained":
            adapters = {trial: _trained(message) for trial, message in request.trained.adapters.items()}
            failures = {trial: _storable(why) for trial, why in request.trained.failures.items()}
            refused = {trial: _storable(why) for trial, why in request.trained.refused.items()}
            return lambda session, job: rounds.apply_trained(session, job, adapters, failures, refused)
        case "evaluated":
            items = [_evaluated(item) for item in request.evaluated.items]
            base_model, graders = request.evaluated.base_model, list(request.evaluated.graders)
            return lambda session, job: rounds.apply_evaluated(
                session, job, items, base_model=base_model, graders=graders
            )
        case "improved":
            adapter = _trained(request.improved.adapter)
            return lambda session, job: rounds.apply_improved(session, job, adapter)
        case "activated":
            return _nothing
        case _:
            raise InvalidField("a job is completed with its result", field="result")


def _nothing(session: Session, job: Job) -> None:
    """An activation leaves no trace in the rows."""


def _storable(text: str) -> str:
    """With what PostgreSQL keeps of the characters that a model may write."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _written(item: pb.Generated.Item) -> results.Written:
    return results.Written(
        self_edits=[
            results.WrittenSelfEdit(
                prompt=_storable(s.prompt),
                text=_storable(s.text),
                seed=s.seed,
                truncated=s.truncated,
                prompt_tokens=s.prompt_tokens,
                completion_tokens=s.completion_tokens,
                fault=_storable(s.fault),
            )
            for s in item.self_edits
        ],
        questions=[Question(question=_storable(q.question), answer=_storable(q.answer)) for q in item.questions],
        redrawn=sum(s.draws > 1 for s in item.self_edits),
    )


def _trained(message: pb.TrainedAdapter) -> results.TrainedAdapter:
    return results.TrainedAdapter(
        name=message.adapter,
        size_bytes=message.size_bytes,
        training=training_from_proto(message.training),
    )


def _evaluated(item: pb.Evaluated.Item) -> results.Evaluated:
    return results.Evaluated(
        trial=item.trial,
        question_set=item.question_set,
        blank_before=item.blank_before,
        blank_after=item.blank_after,
        forgetting=item.forgetting,
        questions=[
            results.Answered(
                before=q.before,
                after=q.after,
                grades_before=dict(q.grades_before),
                grades_after=dict(q.grades_after),
            )
            for q in item.questions
        ],
    )
