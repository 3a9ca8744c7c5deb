"""EvaluatorService: translates between messages and `scoring`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from rookery.v1 import evaluator_service_pb2 as pb
from rookery.v1.evaluator_service_pb2_grpc import EvaluatorServiceServicer, add_EvaluatorServiceServicer_to_server
from rookery_evaluator.scoring import Evaluator, Item
from rookery_shared.domains import DEFAULT_DOMAIN
from rookery_shared.errors import InvalidField
from rookery_shared.faults import Point, fault_point
from rookery_shared.rpc.server import RpcContext, Servicer
from rookery_shared.types import ANSWER_TOKENS
from rookery_shared.wire import context_from_proto, retention_texts_from_proto


class EvaluatorApi(EvaluatorServiceServicer):
    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def servicer(self) -> Servicer:
        return Servicer(
            add=lambda server: add_EvaluatorServiceServicer_to_server(self, server),
            descriptor=pb.DESCRIPTOR.services_by_name["EvaluatorService"],
        )

    async def Score(self, request: pb.ScoreRequest, context: RpcContext) -> AsyncIterator[pb.ScoreResponse]:
        domain = request.domain or DEFAULT_DOMAIN
        items = [Item(adapter=item.adapter, context=context_from_proto(item.context)) for item in request.items]
        for position, item in enumerate(items):
            if not item.context.questions:
                field = f"items[{position}].context.questions"
                raise InvalidField(f"{field} is empty: there is nothing to score", field=field)
            for index, question in enumerate(item.context.questions):
                if not question.answer.strip():
                    field = f"items[{position}].context.questions[{index}].answer"
                    raise InvalidField(f"{field} is blank: no answer could be right", field=field)
        retention_texts = retention_texts_from_proto(request.retention_texts, field="retention_texts")
        graders = self._evaluator.graders(domain, judged=request.judge)
        scores = self._evaluator.score(
            items,
            domain=domain,
            max_new_tokens=request.max_new_tokens or ANSWER_TOKENS,
            judged=request.judge,
            retention_texts=retention_texts,
        )
        async for score in scores:
            response = pb.ScoreResponse(
                item=score.item,
                base_model=str(self._evaluator.engine.identity),
                adapter=items[score.item].adapter,
                question_set=score.question_set,
                graders=graders,
                blank_before=score.blank_before,
                blank_after=score.blank_after,
                forgetting=score.forgetting,
            )
            for before, after in zip(score.before, score.after, strict=True):
                response.questions.add(
                    before=before.text,
                    after=after.text,
                    grades_before=dict(before.grades),
                    grades_after=dict(after.grades),
                )
            yield response
            fault_point(Point.SCORED)
