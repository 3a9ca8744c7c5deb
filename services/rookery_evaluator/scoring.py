"""Asks questions with an adapter and without it, and grades both answers."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rookery_engines.base import Engine
from rookery_engines.connect import find_adapter
from rookery_engines.types import AdapterRef, GenerationRequest, LikelihoodRequest
from rookery_shared.domains import Domain, find_domain
from rookery_shared.domains.graders import LOGLIK
from rookery_shared.store.adapters import AdapterCache
from rookery_shared.types import Context, Question, Sampling

BASE_ANSWERS = 100_000
"""Answers of the base model that are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One adapter and the context it is asked about."""

    adapter: str
    context: Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer and all of its grades."""

    text: str
    grades: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """An item's answers without the adapter and with it, question by question."""

    item: int
    before: Sequence[Answered]
    after: Sequence[Answered]
    question_set: str


class Evaluator:
    """One student model. What the base answers is asked once and remembered."""

    def __init__(self, engine: Engine, cache: AdapterCache) -> None:
        self.engine = engine
        self._cache = cache
        self._base: OrderedDict[tuple[str, str, int], Answered] = OrderedDict()

    async def score(self, items: Sequence[Item], *, domain: str, max_new_tokens: int) -> AsyncIterator[Score]:
        """Scores as they finish. Raises ObjectMissing, AdapterCorrupt or AdapterMismatch, never a zero for them."""
        rules = find_domain(domain)
        for position, item in enumerate(items):
            ref = await find_adapter(self._cache, self.engine, item.adapter)
            before = await self._ask_base(rules, item.context, max_new_tokens)
            after = await self._ask(rules, item.context, range(len(item.context.questions)), ref, max_new_tokens)
            yield Score(item=position, before=before, after=after, question_set=question_set(item.context.questions))

    async def _ask_base(self, rules: Domain, context: Context, max_new_tokens: int) -> list[Answered]:
        prompts = rules.answer_prompts(context)
        keys = [(p, q.answer, max_new_tokens) for p, q in zip(prompts, context.questions, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self._base]
        for i, answered in zip(missing, await self._ask(rules, context, missing, None, max_new_tokens), strict=True):
            self._base[keys[i]] = answered
        answers = [self._base[key] for key in keys]
        while len(self._base) > BASE_ANSWERS:
            self._base.popitem(last=False)
        return answers

    async def _ask(
        self,
        rules: Domain,
        context: Context,
        which: Sequence[int],
        adapter: AdapterRef | None,
        max_new_tokens: int,
    ) -> list[Answered]:
        """Answers, greedy, to some questions of a context."""
        if not which:
            return []
        prompts, greedy = rules.answer_prompts(context), Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
        requests = [GenerationRequest(prompt=prompts[i], sampling=greedy, seed=0, adapter=adapter) for i in which]
        texts = {g.request: g.text.strip() async for g in self.engine.generate(requests)}
        golds = [
            LikelihoodRequest(prompt=prompts[i], completion=context.questions[i].answer, adapter=adapter) for i in which
        ]
        logliks = await self.engine.log_likelihoods(golds)
        return [
            Answered(text=texts[n], grades={**rules.grade(context.questions[i], texts[n]), LOGLIK: logliks[n]})
            for n, i in enumerate(which)
        ]


def question_set(questions: Sequence[Question]) -> str:
    """SHA-256 of questions and gold answers: two scores compare only if it is the same."""
    return hashlib.sha256(json.dumps([asdict(q) for q in questions], sort_keys=True).encode()).hexdigest()
