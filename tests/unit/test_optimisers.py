"""What the policy optimisers make of a context's self-edits and their rewards."""

from __future__ import annotations

import random
import statistics

import pytest
from pydantic import TypeAdapter

from rookery_coordinator.optimisers import PolicyOptimiser, Sample, advantages, optimiser_of
from rookery_coordinator.rewards import Candidate
from rookery_coordinator.types import Grpo, Keep, RestEm, RunPlan
from rookery_shared.types import Example, PolicyGradient

TEXTS = ["one", " two \n", "", "four"]
SAMPLES = [Sample(prompt="p\n", text=text, truncated=text == "four") for text in TEXTS]
GRPO = RunPlan(optimiser=Grpo(kl_coefficient=0.1, clip_range=0.3))


def earned(*rewards: float, baseline: float = 0.2) -> list[Candidate]:
    return [Candidate(text=t, scores=[r], baseline=baseline) for t, r in zip(TEXTS, rewards, strict=False)]


@pytest.fixture
def grpo() -> PolicyOptimiser:
    return optimiser_of(GRPO)


def test_rest_em_imitates_the_best_if_it_gains() -> None:
    rest_em = optimiser_of(RunPlan())
    [lesson] = rest_em.lessons(SAMPLES, earned(0.1, 0.5, 0.3, 0.5))
    assert (lesson.index, lesson.example) == (1, Example(prompt="p\n", completion="two", end=True))
    assert rest_em.lessons(SAMPLES, earned(0.1, 0.2, 0.1, 0.0)) == []
    [kept] = optimiser_of(RunPlan(keep_without_gain=True)).lessons(SAMPLES, earned(0.1, 0.2, 0.1, 0.0))
    assert kept.index == 1
    assert rest_em.gradient([lesson]) is None
    picky = optimiser_of(RunPlan(optimiser=RestEm(least_gain=0.25)))
    assert [lesson.index for lesson in picky.lessons(SAMPLES, earned(0.1, 0.5, 0.3, 0.5))] == [1]
    assert picky.lessons(SAMPLES, earned(0.1, 0.45, 0.3, 0.4)) == []


@pytest.mark.parametrize("domain", ["knowledge", "few_shot"])
def test_a_run_may_say_what_rest_em_imitates(domain: str) -> None:
    def kept(keep: Keep | None, least_gain: float = 0.0) -> list[int]:
        optimiser = optimiser_of(RunPlan(domain=domain, optimiser=RestEm(keep=keep, least_gain=least_gain)))
        return [lesson.index for lesson in optimiser.lessons(SAMPLES, earned(0.1, 0.5, 0.9, 0.3))]

    assert kept(Keep.GAINING) == [1, 3], "the blank one, which is the best, cannot be imitated"
    assert kept(Keep.GAINING, least_gain=0.2) == [1]
    assert kept(Keep.BEST) == []
    assert kept(None) == kept(Keep.GAINING if domain == "few_shot" else Keep.BEST)


def test_rest_ems_control_takes_any_that_is_written() -> None:
    rest_em = optimiser_of(RunPlan())
    taken = {rest_em.control_lessons(SAMPLES, random.Random(seed))[0].index for seed in range(50)}
    assert taken == {0, 1, 3}
    assert rest_em.control_lessons(SAMPLES[2:3], random.Random(0)) == []


def test_advantages_are_relative_to_the_group() -> None:
    relative = advantages([0.1, 0.5, 0.3, 0.5])
    assert sum(relative) == pytest.approx(0.0, abs=1e-12)
    assert statistics.pstdev(relative) == pytest.approx(1.0, abs=1e-3)
    assert relative[1] == relative[3] > relative[2] > relative[0]
    assert advantages([3.1, 3.5, 3.3, 3.5]) == pytest.approx(relative), "a baseline changes nothing"
    assert advantages([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0], "means are exact"
    assert advantages([]) == []


def test_grpo_weighs_every_self_edit_as_it_was_drawn(grpo: PolicyOptimiser) -> None:
    rewards = (0.1, 0.5, 0.3, 0.5)
    lessons = grpo.lessons(SAMPLES, earned(*rewards))
    assert [lesson.index for lesson in lessons] == [0, 1, 2, 3]
    assert [lesson.advantage for lesson in lessons] == advantages(rewards)
    assert [lesson.example.completion for lesson in lessons] == TEXTS, "white space and blanks are the policy's too"
    assert [lesson.example.end for lesson in lessons] == [True, True, True, False], "the last was cut"
    assert grpo.gradient(lessons) == PolicyGradient(
        advantages=tuple(advantages(rewards)), kl_coefficient=0.1, clip_range=0.3
    )


def test_a_group_without_spread_teaches_grpo_nothing(grpo: PolicyOptimiser) -> None:
    assert grpo.lessons(SAMPLES, earned(0.4, 0.4, 0.4, 0.4)) == []
    assert grpo.lessons(SAMPLES[:1], earned(0.9)) == []
    assert grpo.lessons([], []) == []


def test_grpos_control_draws_its_rewards(grpo: PolicyOptimiser) -> None:
    lessons = grpo.control_lessons(SAMPLES, random.Random(1))
    assert [lesson.index for lesson in lessons] == [0, 1, 2, 3]
    assert sum(lesson.advantage for lesson in lessons) == pytest.approx(0.0, abs=1e-12)
    assert lessons == grpo.control_lessons(SAMPLES, random.Random(1))
    assert lessons != grpo.control_lessons(SAMPLES, random.Random(2))


@pytest.mark.parametrize("optimiser", [RestEm(), RestEm(keep=Keep.GAINING), Grpo(kl_coefficient=0.5)])
def test_a_stored_plan_names_its_optimiser(optimiser: RestEm | Grpo) -> None:
    stored = TypeAdapter(RunPlan).dump_python(RunPlan(optimiser=optimiser), mode="json")
    assert TypeAdapter(RunPlan).validate_python(stored).optimiser == optimiser
    del stored["optimiser"]
    assert TypeAdapter(RunPlan).validate_python(stored).optimiser == RestEm(), "plans of before"
