"""Profiles, contexts and works for tests that need some."""

from __future__ import annotations

from collections.abc import Sequence

from rookery_coordinator import submissions
from rookery_coordinator.database import Database
from rookery_coordinator.types import AdaptationPlan, Limits, Reward, Role, RunPlan
from rookery_shared.types import Context, LoraRecipe, Question

TEACHER = "profiles/teacher"
STUDENT = "profiles/student"


def make_profiles(database: Database, *, trials_per_job: int = 4) -> None:
    limits = Limits(trials_per_job=trials_per_job)
    with database.write() as session:
        for name, role in ((TEACHER, Role.TEACHER), (STUDENT, Role.STUDENT)):
            submissions.create_profile(
                session,
                name=name,
                role=role,
                source="m",
                revision="",
                engine="transformers",
                dtype="float32",
                chat=False,
                limits=limits,
            )


def some_contexts(count: int, *, prefix: str = "context", questions: int = 2) -> list[Context]:
    return [
        Context(
            title=f"{prefix} {i}",
            passage=f"About {prefix} {i}.",
            questions=tuple(Question(question=f"q{n}?", answer=f"a{n}") for n in range(questions)),
        )
        for i in range(count)
    ]


PLAN = RunPlan(rounds=2, self_edits=3, seeds=2, test_self_edits=1, reward=Reward.EXACT, control=True)


def make_run(
    database: Database,
    plan: RunPlan = PLAN,
    *,
    train: int = 4,
    test: int = 3,
    contexts: Sequence[Context] | None = None,
) -> str:
    """`contexts` to train on, if not `train` of the usual ones."""
    with database.write() as session:
        run = submissions.create_run(
            session,
            teacher=TEACHER,
            student=STUDENT,
            plan=plan,
            train=some_contexts(train) if contexts is None else contexts,
            test=some_contexts(test, prefix="test"),
        )
        return run.name


def make_adaptation(database: Database, *, questions: int = 2, seeds: int = 2) -> str:
    plan = AdaptationPlan(self_edits=3, seeds=seeds, reward=Reward.EXACT, student_recipe=LoraRecipe(rank=8, alpha=16))
    with database.write() as session:
        adaptation = submissions.create_adaptation(
            session, teacher=TEACHER, student=STUDENT, plan=plan, context=some_contexts(1, questions=questions)[0]
        )
        return adaptation.name
