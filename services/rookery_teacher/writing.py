"""Writes self-edits: prompts from the domain, texts from the engine, by the policy that is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from rookery_engines.base import Engine
from rookery_engines.connect import find_adapter
from rookery_engines.probing import probe
from rookery_engines.types import Generation, GenerationRequest
from rookery_shared.domains import find_domain
from rookery_shared.store.adapters import AdapterCache
from rookery_shared.types import BASE_ADAPTER, Context, Sampling

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
        self, assignments: Sequence[Assignment], *, adapter: str, domain: str, style: str, sampling: Sampling
    ) -> AsyncIterator[Written]:
        """Texts as they finish, in any order."""
        policy = adapter or self.active
        ref, rules = await find_adapter(self._cache, self.engine, policy), find_domain(domain)
        places = [(a, i) for a, assignment in enumerate(assignments) for i in range(len(assignment.seeds))]
        requests = [
            GenerationRequest(
                prompt=(
                    rules.question_prompt(assignments[a].context)
                    if assignments[a].questions
                    else rules.self_edit_prompt(assignments[a].context, style=style)
                ),
                sampling=sampling,
                seed=assignments[a].seeds[i],
                adapter=ref,
            )
            for a, i in places
        ]
        async for generation in self.engine.generate(requests):
            request, (a, i) = requests[generation.request], places[generation.request]
            yield Written(
                assignment=a, index=i, prompt=request.prompt, seed=request.seed, generation=generation, adapter=policy
            )
