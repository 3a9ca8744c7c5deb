"""The student makes the examples of its trials itself, and what it cannot make any of fails alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import pytest

from rookery.internal.v1 import job_service_pb2 as pb
from rookery.v1 import model_service_pb2
from rookery_shared.domains import find_domain
from rookery_shared.errors import OtherRules, Preempted
from rookery_shared.grids.augmentations import GROUPS
from rookery_shared.grids.configuration import Configuration, Strategy, write_configuration
from rookery_shared.jobs.lease import Lease
from rookery_shared.types import Context, Demonstration, Example, LoraRecipe
from rookery_shared.wire import context_to_proto, examples_to_proto, recipe_to_proto
from rookery_student.training import Student
from rookery_training.workshop import Made, Order, Workshop

DOMAIN = find_domain("few_shot")
TASK = Context(
    title="mirror",
    demonstrations=tuple(Demonstration(input=f"{i} 0\n0 0", output=f"0 {i}\n0 0") for i in (1, 2, 3)),
)
GOOD = Configuration(groups=("use_size_augmentations",), strategy=Strategy.OUTPUT, learning_rate=1e-4, epochs=2)
TOO_MUCH = replace(GOOD, groups=(*GROUPS,), epochs=20)


class Shop:
    """Makes an adapter of every order, and keeps the orders."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.calls = 0

    def make(self, lease: Lease, profile: model_service_pb2.Profile, orders: Sequence[Order]) -> Iterator[Made]:
        self.calls += 1
        self.orders += orders
        for order in orders:
            yield Made(key=order.key, adapter=pb.TrainedAdapter(adapter=f"adapters/{order.key}"))


def claim(*self_edits: str | None, domain: str = "few_shot", version: int | None = None) -> pb.ClaimResponse:
    """A trial for each self-edit, named by its place."""
    claimed = pb.ClaimResponse()
    claimed.train.domain = domain
    claimed.train.domain_version = DOMAIN.version if version is None else version
    for place, self_edit in enumerate(self_edits):
        recipe = recipe_to_proto(DOMAIN.recipe(self_edit or "", LoraRecipe(rank=4)))
        claimed.train.trials.add(
            id=str(place), context=context_to_proto(TASK), self_edit=self_edit, seed=place, recipe=recipe
        )
    return claimed


def train(claimed: pb.ClaimResponse, lease: Lease | None = None) -> tuple[pb.Trained, Shop]:
    shop = Shop()
    student = Student(cast(Workshop, shop))
    return student.train(claimed, lease or Lease(job="j", epoch=1)).trained, shop


def test_examples_are_made_of_the_context_and_the_self_edit() -> None:
    good = write_configuration(GOOD)
    trained, shop = train(claim(good, good, None))
    assert {*trained.adapters} == {"0", "1", "2"}
    assert not trained.failures
    first, second, alone = shop.orders
    assert first.examples == DOMAIN.examples(TASK, good, seed=0)
    assert second.examples == DOMAIN.examples(TASK, good, seed=1)
    assert first.examples != second.examples, "another seed"
    assert alone.examples == DOMAIN.examples(TASK, "", seed=2), "the task alone"
    assert [order.seed for order in shop.orders] == [0, 1, 2]
    assert first.recipe == DOMAIN.recipe(good, LoraRecipe(rank=4))
    assert alone.recipe == LoraRecipe(rank=4)


def test_a_self_edit_with_a_fault_that_nobody_told_is_refused_alone_with_its_reason() -> None:
    """What is no JSON, what is blank, what asks for too many steps; the others are trained."""
    trained, shop = train(claim("Here it is:", write_configuration(GOOD), "", write_configuration(TOO_MUCH)))
    assert {*trained.adapters} == {"1"} == {order.key for order in shop.orders}
    assert {*trained.refused} == {"0", "2", "3"}
    assert not trained.failures
    assert "JSON" in trained.refused["0"]
    assert "JSON" in trained.refused["2"]
    assert "steps" in trained.refused["3"]


def test_without_any_that_can_be_used_no_model_is_needed() -> None:
    trained, shop = train(claim("no", "nor this"))
    assert (len(trained.refused), len(trained.adapters), shop.calls) == (2, 0, 0)


@pytest.mark.parametrize(("domain", "version"), [("few_shot", DOMAIN.version + 1), ("chess", 1)])
def test_a_job_of_other_rules_is_not_done(domain: str, version: int) -> None:
    """Its adapters would be stored as what they are not."""
    with pytest.raises(OtherRules, match="version"):
        train(claim(write_configuration(GOOD), domain=domain, version=version))


def test_a_coordinator_of_the_release_before_makes_the_examples() -> None:
    """It names no domain, and so what a student of today is updated beside goes on."""
    claimed = pb.ClaimResponse()
    examples = [Example(prompt="a", completion="b", end=True), Example(completion="c")]
    claimed.train.trials.add(id="0", seed=3, examples=examples_to_proto(examples))
    trained, shop = train(claimed)
    assert {*trained.adapters} == {"0"}
    assert [(order.examples, order.seed) for order in shop.orders] == [(examples, 3)]


def test_a_job_that_must_stop_makes_no_more_examples() -> None:
    lease = Lease(job="j", epoch=1)
    lease.stop(Preempted("make way"))
    with pytest.raises(Preempted):
        train(claim(write_configuration(GOOD)), lease)
