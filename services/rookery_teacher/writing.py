"""Writes self-edits: prompts from the domain, texts from the engine, by the policy that is asked for.

A text that is blank, that its context has already, or that cannot be used teaches nothing new: it may be drawn again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from rookery_engines.base import Engine
from rookery_engines.connect import find_adapter
from rookery_engines.probing import probe
from rookery_engines.types import Generation, GenerationRequest
from rookery_shared.domains import find_domain
from rookery_shared.seeds import derive_seed
from rookery_shared.store.adapters import AdapterCache
from rookery_shared.types import BASE_ADAPTER, Context, LoraRecipe, Sampling

PROBE = "Let's read the following passage and produce a list of implications."
"""A text that every policy finds more likely than the base does, or less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One context and a seed for each text that is wanted about it."""

    context: Context
    seeds: Sequence[int]
    questions: bool
    """Write questions, not a self-edit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One finished text."""

    assignment: int
    index: int
    prompt: str
    seed: int
    generation: Generation
    adapter: str
    draws: int
    """How many there were for it. This is the last, whatever it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A text that is still to be written."""

    assignment: int
    index: int
    prompt: str
    seed: int
    schema: str


class _InOrder:
    """Gives back what finishes in any order in the order of the requests, context by context.

    Which of two equal texts came first must not depend on how fast they were.
    """

    def __init__(self, drafts: Sequence[_Draft]) -> None:
        self._drafts = drafts
        self._finished: dict[int, Generation] = {}
        self._waiting: defaultdict[int, deque[int]] = defaultdict(deque)
        for request, draft in enumerate(drafts):
            self._waiting[draft.assignment].append(request)

    def add(self, generation: Generation) -> Iterator[Generation]:
        self._finished[generation.request] = generation
        waiting = self._waiting[self._drafts[generation.request].assignment]
        while waiting and waiting[0] in self._finished:
            yield self._finished.pop(waiting.popleft())


class Teacher:
    """One base model and the policies over it. Requests may name different policies at the same time."""

    def __init__(self, engine: Engine, cache: AdapterCache) -> None:
        self.engine = engine
        self._cache = cache
        self.active = BASE_ADAPTER

    async def activate(self, adapter: str) -> None:
        """Load a policy, see that it answers, then make it the one for requests that name none.

        Raises ObjectMissing, AdapterCorrupt, AdapterMismatch or AdapterIgnored; the old one stays active then.
        """
        ref = await find_adapter(self._cache, self.engine, adapter)
        if ref is not None:
            await probe(self.engine, [ref], PROBE)
        self.active = adapter

    async def write(
        self,
        assignments: Sequence[Assignment],
        *,
        adapter: str,
        domain: str,
        style: str,
        sampling: Sampling,
        recipe: LoraRecipe,
        redraws: int = 0,
    ) -> AsyncGenerator[Written, None]:
        """Texts as they finish, for students that train by the recipe. Each is drawn again up to `redraws` times while
        it is nothing new.

        As long as it may be, a context's texts come in the order of its seeds; otherwise in any.
        """
        policy = adapter or self.active
        ref, rules = await find_adapter(self._cache, self.engine, policy), find_domain(domain)
        drafts: list[_Draft] = []
        for a, assignment in enumerate(assignments):
            if assignment.questions:
                prompt, schema = rules.question_prompt(assignment.context), ""
            else:
                prompt = rules.self_edit_prompt(assignment.context, style=style)
                schema = rules.self_edit_schema(assignment.context, style=style, recipe=recipe)
            asked = self.engine.ask(prompt)
            drafts += [
                _Draft(assignment=a, index=i, prompt=asked, seed=seed, schema=schema)
                for i, seed in enumerate(assignment.seeds)
            ]

        async def unusable(draft: _Draft, text: str) -> bool:
            assignment = assignments[draft.assignment]
            find = partial(rules.fault, assignment.context, text, recipe=recipe)
            return not assignment.questions and bool(await asyncio.to_thread(find))

        known: list[set[str]] = [{""} for _ in assignments]
        draws_left = redraws if sampling.temperature else 0  # a greedy text would come out the same
        for draws in range(1, draws_left + 2):
            again: list[_Draft] = []
            in_order = _InOrder(drafts)
            requests = [
                GenerationRequest(prompt=d.prompt, sampling=sampling, seed=d.seed, adapter=ref, schema=d.schema)
                for d in drafts
            ]
            async with aclosing(self.engine.generate(requests)) as generations:
                async for finished in generations:
                    for generation in [finished] if draws > draws_left else in_order.add(finished):
                        draft, text = drafts[generation.request], generation.text.strip()
                        if draws <= draws_left and (text in known[draft.assignment] or await unusable(draft, text)):
                            again.append(replace(draft, seed=derive_seed(draft.seed, "again")))
                            continue
                        known[draft.assignment].add(text)
                        yield Written(
                            assignment=draft.assignment,
                            index=draft.index,
                            prompt=draft.prompt,
                            seed=draft.seed,
                            generation=generation,
                            adapter=policy,
                            draws=draws,
                        )
            if not again:
                return
            drafts = sorted(again, key=lambda draft: (draft.assignment, draft.index))
