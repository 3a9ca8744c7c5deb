"""What names a training: two of the same digest give the same adapter, so all that decides the examples is in it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from rookery_coordinator.identifiers import recipe_digest
from rookery_shared.domains import Domain, domain_names, find_domain
from rookery_shared.grids.augmentations import GROUPS
from rookery_shared.grids.configuration import Configuration, Strategy, write_configuration
from rookery_shared.types import Context, Demonstration, LoraRecipe, Question

TEXT = Context(title="Edda", passage="Edda was born in Norwick.", questions=(Question(question="Where?", answer="N"),))
TASK = Context(
    title="mirror",
    demonstrations=tuple(Demonstration(input=f"{i} 0\n0 {i}", output=f"0 {i}\n{i} 0") for i in (1, 2, 3)),
    questions=(Question(question="4 0\n0 4", answer="0 4\n4 0"),),
)
CONFIGURATION = write_configuration(
    Configuration(groups=(*GROUPS,), strategy=Strategy.OUTPUT, learning_rate=1e-4, epochs=1)
)
TAUGHT = {"knowledge": (TEXT, "1. Edda is from Norwick.\n2. So is Ida."), "few_shot": (TASK, CONFIGURATION)}
EXAMPLES = {
    ("knowledge", 1): "970959cf9a250c1d22a68b322cd3b6ddc1f2f1cfc70b9d75808f65ad97e60c9d",
    ("few_shot", 1): "9d862a9f537c4fdfe271fece8da3f87a8ecd5d822b9be3467df5a16f43f64179",
}
"""SHA-256 of the examples of `TAUGHT` by the domain's name and version."""


def digest(**changes: Any) -> str:
    said: dict[str, Any] = {
        "base_model": "m@",
        "dtype": "float32",
        "domain": find_domain("knowledge"),
        "context": TEXT,
        "self_edit": "1. One.",
        "recipe": LoraRecipe(),
        "seed": 0,
    }
    return recipe_digest(**(said | changes))


def of_version(domain: Domain, version: int) -> Domain:
    changed = type(domain)()
    changed.version = version  # type: ignore[misc]  # read-only in the interface
    return changed


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model": "m@2"},
        {"dtype": "bfloat16"},
        {"domain": find_domain("few_shot")},
        {"domain": of_version(find_domain("knowledge"), 0)},
        {"context": replace(TEXT, title="Ida")},
        {"context": replace(TEXT, passage="Ida was born in Norwick.")},
        {"context": replace(TEXT, demonstrations=TASK.demonstrations)},
        {"self_edit": "1. Two."},
        {"self_edit": ""},
        {"self_edit": None},
        {"recipe": LoraRecipe(epochs=1)},
        {"seed": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_decides_the_examples_and_the_training_is_told_apart(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


def test_a_limit_of_steps_decides_whether_and_not_how() -> None:
    assert digest(recipe=LoraRecipe(max_steps=100)) == digest()


def test_a_blank_self_edit_is_not_taken_for_none() -> None:
    """To a domain that it has a fault in, they are two things."""
    assert digest(self_edit="") != digest(self_edit=None)


def test_questions_decide_nothing() -> None:
    assert digest(context=replace(TEXT, questions=())) == digest()
    for name, (context, self_edit) in TAUGHT.items():
        make = find_domain(name).examples
        assert make(replace(context, questions=()), self_edit, seed=1) == make(context, self_edit, seed=1)


@pytest.mark.parametrize("name", domain_names())
def test_examples_are_those_of_the_domain_s_version(name: str) -> None:
    """If this fails the domain makes other examples: raise its version, and note their digest here."""
    domain, (context, self_edit) = find_domain(name), TAUGHT[name]
    made = [domain.examples(context, text, seed=7) for text in (self_edit, "")]
    assert all(made)
    assert hashlib.sha256(repr(made).encode()).hexdigest() == EXAMPLES[name, domain.version]


@pytest.mark.parametrize("name", domain_names())
def test_a_self_edit_with_a_fault_decides_nothing_about_the_training(name: str) -> None:
    domain, plan = find_domain(name), LoraRecipe(rank=4, epochs=3)
    assert domain.recipe("Here it is: {", plan) == plan
    assert domain.recipe("", plan) == plan
