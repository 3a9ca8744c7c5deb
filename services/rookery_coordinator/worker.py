"""The coordinator's Celery worker: it asks teachers for self-edits and finds their faults, and evaluators for scores.

It has no database: like every worker it claims jobs from the coordinator and reports to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import grpc

from rookery.internal.v1 import job_service_pb2 as pb
from rookery.transport import call, open_channel, stream
from rookery.v1 import context_pb2, evaluator_service_pb2, teacher_service_pb2
from rookery.v1.evaluator_service_pb2_grpc import EvaluatorServiceStub
from rookery.v1.teacher_service_pb2_grpc import TeacherServiceStub
from rookery_coordinator.settings import WorkerSettings
from rookery_shared.domains import find_domain
from rookery_shared.jobs.lease import Lease
from rookery_shared.jobs.runner import JobRunner
from rookery_shared.jobs.worker import connect_runner
from rookery_shared.types import Question
from rookery_shared.wire import context_from_proto, questions_to_proto, recipe_from_proto

STREAM_SECONDS = 3600.0
"""Longest that a teacher or an evaluator may take over one job."""
ACTIVATE_SECONDS = 300.0
LONGEST_FAULT = 500
"""Characters: a fault may quote what the teacher wrote."""

Stub = TypeVar("Stub")


def build_runner() -> JobRunner:
    """Called in the worker process."""
    settings = WorkerSettings()
    remote = Remote(settings)
    handlers = {"generate": remote.generate, "evaluate": remote.evaluate, "activate": remote.activate}
    return connect_runner(settings, handlers)


class Remote:
    """The handlers, and the channels to whom they call."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._channel: Callable[[str], grpc.Channel] = lru_cache(maxsize=None)(open_channel)

    def _teacher(self, profile: str) -> TeacherServiceStub:
        target = self._settings.teacher_target.format(profile=profile.removeprefix("profiles/"))
        return TeacherServiceStub(self._channel(target))

    def _evaluator(self, profile: str) -> EvaluatorServiceStub:
        target = self._settings.evaluator_target.format(profile=profile.removeprefix("profiles/"))
        return EvaluatorServiceStub(self._channel(target))

    def generate(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        """All self-edits of the job, each with its fault, and questions for contexts that came without."""
        work = claim.generate
        request = _generate_request(work)
        domain = find_domain(work.domain)
        recipe = recipe_from_proto(work.student_recipe, default=domain.student_recipe, field="student_recipe")
        total = sum(len(assignment.seeds) for assignment in request.assignments)
        written: dict[tuple[int, int], teacher_service_pb2.GenerateSelfEditsResponse] = {}
        method = _streaming(self._teacher(work.teacher).GenerateSelfEdits, lease)
        responses = stream(method, request, seconds=STREAM_SECONDS, patient=True)
        for response in responses:
            written[response.assignment, response.index] = response
            lease.progress(len(written), total)
        result = pb.CompleteRequest()
        questions_at = len(work.items)  # their assignments come after those of the self-edits
        for position, item in enumerate(work.items):
            generated, taught = result.generated.items.add(), context_from_proto(item.context)
            for index in range(len(item.seeds)):
                lease.check()
                response = written[position, index]
                fault = domain.fault(taught, response.text, recipe=recipe)[:LONGEST_FAULT]
                generated.self_edits.append(_self_edit(response, fault))
            if item.question_seeds:
                texts = [written[questions_at, index].text for index in range(len(item.question_seeds))]
                generated.questions.extend(_read_questions(work.domain, texts))
                questions_at += 1
        return result

    def evaluate(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        """The scores of all adapters of the job."""
        work = claim.evaluate
        request = evaluator_service_pb2.ScoreRequest(
            domain=work.domain,
            items=[evaluator_service_pb2.ScoreRequest.Item(adapter=i.adapter, context=i.context) for i in work.items],
            max_new_tokens=work.max_new_tokens,
            judge=work.judge,
            retention_texts=work.retention_texts,
        )
        scores: dict[int, evaluator_service_pb2.ScoreResponse] = {}
        method = _streaming(self._evaluator(work.student).Score, lease)
        responses = stream(method, request, seconds=STREAM_SECONDS, patient=True)
        for response in responses:
            scores[response.item] = response
            lease.progress(len(scores), len(work.items))
        result = pb.CompleteRequest()
        for position, item in enumerate(work.items):
            score = scores[position]
            result.evaluated.base_model = score.base_model
            result.evaluated.graders[:] = score.graders
            result.evaluated.items.append(_evaluated(item.trial, score))
        return result

    def activate(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        """Have the teacher load its active policy ahead of the first request for it."""
        work = claim.activate
        request = teacher_service_pb2.ActivatePolicyRequest(adapter=work.adapter)
        method = _unary(self._teacher(work.teacher).ActivatePolicy, lease)
        call(method, request, seconds=ACTIVATE_SECONDS, patient=True)
        return pb.CompleteRequest(activated=pb.Activated())


def _streaming(method: Callable[..., Any], lease: Lease) -> Callable[..., Any]:
    """The method, with calls that end as soon as the job must stop."""

    def start(request: Any, **options: Any) -> Any:
        started = method(request, **options)
        lease.when_stopped(started.cancel)
        return started

    return start


def _unary(method: Any, lease: Lease) -> Callable[..., Any]:
    """Likewise, for a method that answers once."""
    start = _streaming(method.future, lease)
    return lambda request, **options: start(request, **options).result()


def _generate_request(work: pb.GenerateWork) -> teacher_service_pb2.GenerateSelfEditsRequest:
    """An assignment for each context, then one for each context that needs questions."""
    request = teacher_service_pb2.GenerateSelfEditsRequest(
        adapter=work.adapter,
        domain=work.domain,
        style=work.style,
        sampling=work.sampling,
        redraws=work.redraws,
        student_recipe=work.student_recipe,
    )
    for item in work.items:
        request.assignments.add(context=item.context, seeds=item.seeds)
    for item in work.items:
        if item.question_seeds:
            request.assignments.add(context=item.context, seeds=item.question_seeds, questions=True)
    return request


def _self_edit(response: teacher_service_pb2.GenerateSelfEditsResponse, fault: str) -> pb.Generated.SelfEdit:
    return pb.Generated.SelfEdit(
        prompt=response.prompt,
        text=response.text,
        seed=response.seed,
        truncated=response.finish_reason == teacher_service_pb2.GenerateSelfEditsResponse.FINISH_REASON_LENGTH,
        prompt_tokens=response.prompt_tokens,
        completion_tokens=response.completion_tokens,
        draws=response.draws,
        fault=fault,
    )


def _read_questions(domain: str, texts: list[str]) -> list[context_pb2.Question]:
    """The questions in several texts, each once."""
    found: dict[str, Question] = {}
    for text in texts:
        for question in find_domain(domain).read_questions(text):
            found.setdefault(question.question, question)
    return questions_to_proto(found.values())


def _evaluated(trial: str, score: evaluator_service_pb2.ScoreResponse) -> pb.Evaluated.Item:
    return pb.Evaluated.Item(
        trial=trial,
        question_set=score.question_set,
        blank_before=score.blank_before,
        blank_after=score.blank_after,
        forgetting=score.forgetting,
        questions=[
            pb.Evaluated.Question(
                before=q.before, after=q.after, grades_before=q.grades_before, grades_after=q.grades_after
            )
            for q in score.questions
        ],
    )
