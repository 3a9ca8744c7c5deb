"""Asks questions with an adapter and without it, and grades both answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from cachetools import LRUCache

from rookery_engines.base import Engine
from rookery_engines.connect import find_adapter
from rookery_engines.probing import probe
from rookery_engines.types import AdapterRef, Answer, AnswerRequest
from rookery_evaluator.judging import Case, Judge
from rookery_evaluator.retention import Retention
from rookery_shared.domains import Domain, find_domain
from rookery_shared.domains.graders import JUDGE, LIKELIHOOD, LOGLIK
from rookery_shared.errors import GradeNotANumber, NoJudge
from rookery_shared.store.adapters import AdapterCache
from rookery_shared.types import Context, Question

BASE_ANSWERS = 100_000
"""Answers of the base model that are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One adapter and the context it is asked about."""

    adapter: str
    context: Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer, without white space around it, and all of its grades."""

    text: str
    grades: Mapping[str, float]


Pair = tuple[Answered, Answered]
"""One question's answers without the adapter and with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """An item's answers without the adapter and with it, question by question."""

    item: int
    before: Sequence[Answered]
    after: Sequence[Answered]
    question_set: str
    forgetting: float
    """What the retention texts have lost, in nats per token; 0 without any."""

    @property
    def blank_before(self) -> int:
        """Answers of the base with nothing in them."""
        return sum(not answered.text for answered in self.before)

    @property
    def blank_after(self) -> int:
        """Answers with the adapter with nothing in them."""
        return sum(not answered.text for answered in self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """A question that an item is asked, and the adapter that answers it."""

    item: int
    context: Context
    index: int
    """Of the question in its context."""
    prompts: tuple[str, ...]
    """The ways in which it is asked. The gold answer is to the first."""
    adapter: AdapterRef | None

    @property
    def question(self) -> Question:
        return self.context.questions[self.index]

    @property
    def key(self) -> tuple[str, ...]:
        return *self.prompts, self.question.answer


class Evaluator:
    """One student model, and a judge if there is one. What the base answers is asked once and remembered."""

    def __init__(self, engine: Engine, cache: AdapterCache, *, judge: Judge | None = None) -> None:
        self.engine = engine
        self._cache = cache
        self._judge = judge
        self._retention = Retention(engine)
        self._base: LRUCache[tuple[tuple[str, ...], int], Answered] = LRUCache(BASE_ANSWERS)
        """By question and longest answer. The model is always this one: another revision is another profile."""

    def graders(self, domain: str, *, judged: bool) -> list[str]:
        """`name/version` of every grader whose grades a score has. Raises NoJudge."""
        names = [*find_domain(domain).graders]
        return [*names, self._find_judge().label] if judged else names

    async def score(
        self,
        items: Sequence[Item],
        *,
        domain: str,
        max_new_tokens: int,
        judged: bool = False,
        retention_texts: Sequence[str] = (),
    ) -> AsyncIterator[Score]:
        """Scores as they finish; as many adapters as the engine keeps are asked all their questions in one batch.

        Raises ObjectMissing, AdapterCorrupt, AdapterMismatch, AdapterIgnored or GradeNotANumber; if the judge is to
        grade as well, NoJudge, JudgeFailed or what its engine raises. There is never a zero for them.
        """
        rules = find_domain(domain)
        judge = self._find_judge() if judged else None
        for first in range(0, len(items), self.engine.max_adapters):
            places = range(first, min(first + self.engine.max_adapters, len(items)))
            names = {items[i].adapter for i in places}
            found = await asyncio.gather(*(find_adapter(self._cache, self.engine, name) for name in names))
            refs = dict(zip(names, found, strict=True))
            adapters = [ref for ref in refs.values() if ref is not None]
            await asyncio.gather(*(self.engine.load(adapter) for adapter in adapters))
            asks = [ask for i in places for ask in self._asks(i, items[i].context, refs[items[i].adapter], rules)]
            pairs = await self._answer(asks, rules, max_new_tokens)
            unproved = _unproved(asks, pairs, rounding=self.engine.rounding)
            await probe(self.engine, unproved, rules.asks(items[first].context)[0].prompt)
            if judge is not None:
                pairs = await _judged(judge, asks, pairs)
            answered: defaultdict[int, list[Pair]] = defaultdict(list)
            for ask, pair in zip(asks, pairs, strict=True):
                answered[ask.item].append(pair)
            lost = await self._retention.forgetting(adapters, retention_texts) if retention_texts else []
            forgetting = dict(zip([ref.name for ref in adapters], lost, strict=False))
            for i in places:
                before, after = zip(*answered[i], strict=True)
                yield Score(
                    item=i,
                    before=before,
                    after=after,
                    question_set=question_set(items[i].context.questions),
                    forgetting=forgetting.get(items[i].adapter, 0.0),
                )

    def _asks(self, item: int, context: Context, adapter: AdapterRef | None, rules: Domain) -> Iterator[_Ask]:
        """One for each question of the context."""
        prompts: defaultdict[int, list[str]] = defaultdict(list)
        for ask in rules.asks(context):
            prompts[ask.question].append(self.engine.ask(ask.prompt))
        for index in range(len(context.questions)):
            yield _Ask(item=item, context=context, index=index, prompts=tuple(prompts[index]), adapter=adapter)

    def _find_judge(self) -> Judge:
        if self._judge is None:
            raise NoJudge("the evaluator has no judge: ROOKERY_JUDGE_URL and ROOKERY_JUDGE_MODEL are not set")
        return self._judge

    async def _answer(self, asks: Sequence[_Ask], rules: Domain, max_new_tokens: int) -> list[Pair]:
        """The answers to each. The base writes only what it never has."""
        before = {ask.key: self._base.get((ask.key, max_new_tokens)) for ask in asks}
        unknown = [*{ask.key: ask for ask in asks if before[ask.key] is None}.values()]
        asked = [replace(ask, adapter=None) for ask in unknown] + [*asks]
        answered = await self._ask(asked, rules, max_new_tokens)
        for ask, answer in zip(unknown, answered, strict=False):
            before[ask.key] = self._base[ask.key, max_new_tokens] = answer
        pairs: list[Pair] = []
        for ask, answer in zip(asks, answered[len(unknown) :], strict=True):
            base = before[ask.key]
            assert base is not None
            pairs.append((base, answer))
        return pairs

    async def _ask(self, asks: Sequence[_Ask], rules: Domain, max_new_tokens: int) -> list[Answered]:
        """The graded answer to each, from what is written to all of its prompts."""
        requests = [
            AnswerRequest(
                prompt=prompt,
                gold=ask.question.answer if way == 0 else "",
                max_new_tokens=max_new_tokens,
                adapter=ask.adapter,
            )
            for ask in asks
            for way, prompt in enumerate(ask.prompts)
        ]
        answers = iter(await self.engine.answer(requests))
        return [_graded(ask, [next(answers) for _ in ask.prompts], rules) for ask in asks]


def _unproved(asks: Sequence[_Ask], pairs: Sequence[Pair], *, rounding: float) -> list[AdapterRef]:
    """Adapters of which no gold answer shows that they were asked and not the base: none is more or less likely by more
    than rounding. They are to be probed beside the base, in one batch.
    """
    adapters = {ask.adapter.name: ask.adapter for ask in asks if ask.adapter is not None}
    for ask, (before, after) in zip(asks, pairs, strict=True):
        if ask.adapter is not None and abs(after.grades[LOGLIK] - before.grades[LOGLIK]) > rounding:
            adapters.pop(ask.adapter.name, None)
    return [*adapters.values()]


def _graded(ask: _Ask, answers: Sequence[Answer], rules: Domain) -> Answered:
    """Of the answers to all ways of asking. Raises GradeNotANumber."""
    loglik = answers[0].log_likelihood
    if not math.isfinite(loglik):
        who = ask.adapter.name if ask.adapter else "the base model"
        raise GradeNotANumber(f"the likelihood of {ask.question.answer!r} is {loglik} with {who}")
    text = rules.answer(ask.context, ask.index, [answer.text for answer in answers])
    measured = {LOGLIK: loglik, LIKELIHOOD: math.exp(min(0.0, loglik))}
    return Answered(text=text, grades={**rules.grade(ask.question, text), **measured})


async def _judged(judge: Judge, asks: Sequence[_Ask], pairs: Sequence[Pair]) -> list[Pair]:
    """The answers with the judge's grade among their grades."""
    cases = [
        Case(title=ask.context.title, question=ask.question.question, gold=ask.question.answer, answer=answered.text)
        for ask, pair in zip(asks, pairs, strict=True)
        for answered in pair
    ]
    grades = iter(await judge.grade(cases))

    def add(answered: Answered) -> Answered:
        return replace(answered, grades={**answered.grades, JUDGE: next(grades)})

    return [(add(before), add(after)) for before, after in pairs]


def question_set(questions: Sequence[Question]) -> str:
    """SHA-256 of questions and gold answers: two scores compare only if it is the same."""
    return hashlib.sha256(json.dumps([asdict(q) for q in questions], sort_keys=True).encode()).hexdigest()
