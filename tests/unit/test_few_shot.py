"""The few-shot domain's rules: prompts, practice, ways to ask, votes and grades."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from rookery.internal.v1.job_service_pb2 import Generated
from rookery_shared.domains import few_shot, find_domain
from rookery_shared.domains.few_shot import MOST_DEMONSTRATIONS, MOST_STEPS
from rookery_shared.errors import InvalidField
from rookery_shared.grids.augmentations import GROUPS
from rookery_shared.grids.configuration import (
    MOST_EPOCHS,
    Configuration,
    Strategy,
    read_configuration,
    write_configuration,
)
from rookery_shared.types import Context, Demonstration, LoraRecipe, Question

DOMAIN = find_domain("few_shot")
CONTEXT = Context(
    title="mirror",
    demonstrations=tuple(Demonstration(input=f"{i} 0\n0 0", output=f"0 {i}\n0 0") for i in (1, 2, 3)),
    questions=(Question(question="4 0\n0 0", answer="0 4\n0 0"),),
)
WORDS = Context(
    title="plural",
    demonstrations=tuple(Demonstration(input=word, output=f"{word}s") for word in ("cat", "dog", "tree")),
    questions=(Question(question="house", answer="houses"),),
)


def fault(context: Context, self_edit: str, *, max_steps: int = 0) -> str:
    return DOMAIN.fault(context, self_edit, recipe=replace(DOMAIN.student_recipe, max_steps=max_steps))


def configured(**changes: object) -> str:
    content = json.loads(
        write_configuration(Configuration(groups=(), strategy=Strategy.OUTPUT, learning_rate=1e-4, epochs=2))
    )
    for part in content.values():
        part.update({key: value for key, value in changes.items() if key in part})
    return json.dumps(content)


def test_the_teacher_sees_the_demonstrations_and_is_asked_for_json() -> None:
    prompt = DOMAIN.self_edit_prompt(CONTEXT, style="configuration")
    assert "Input:\n1 0\n0 0\nOutput:\n0 1\n0 0" in prompt
    assert all(group in prompt for group in GROUPS)
    assert "4 0" not in prompt, "the test input is not shown"


def test_practice_asks_as_a_test_does_and_ends() -> None:
    examples = DOMAIN.examples(CONTEXT, configured(), seed=0)
    plain, *_ = [e for e in examples if e.prompt.endswith("Input:\n1 0\n0 0\nOutput:\n")]
    assert plain.completion == "0 1\n0 0"
    assert plain.end
    asked = DOMAIN.asks(CONTEXT)[0].prompt
    assert asked.endswith("Input:\n4 0\n0 0\nOutput:\n")
    assert asked.count("Input:") == 4


def test_augmentations_make_more_of_it_and_a_seed_decides_which() -> None:
    many = DOMAIN.examples(CONTEXT, configured(use_basic_augmentations=True, num_train_epochs=1), seed=0)
    assert len(many) > 5 * len(DOMAIN.examples(CONTEXT, configured(), seed=0))
    assert many == DOMAIN.examples(CONTEXT, configured(use_basic_augmentations=True, num_train_epochs=1), seed=0)
    assert many != DOMAIN.examples(CONTEXT, configured(use_basic_augmentations=True, num_train_epochs=1), seed=1)
    assert DOMAIN.examples(CONTEXT, "", seed=0) == DOMAIN.examples(CONTEXT, configured(), seed=0), "the task alone"


def test_the_self_edit_decides_how_to_optimise() -> None:
    recipe = DOMAIN.recipe(configured(learning_rate=1e-3, num_train_epochs=5), LoraRecipe(rank=4))
    assert (recipe.rank, recipe.learning_rate, recipe.epochs, recipe.completion_only_loss) == (4, 1e-3, 5, True)
    every = DOMAIN.recipe(configured(strategy="train_using_all_tokens"), LoraRecipe())
    assert not every.completion_only_loss
    assert DOMAIN.recipe("", LoraRecipe(rank=4)) == LoraRecipe(rank=4)


def random_one(context: Context, *, seed: int) -> str:
    return DOMAIN.baseline("random", context, seed=seed, recipe=DOMAIN.student_recipe)


def test_what_cannot_be_used_says_why() -> None:
    assert fault(CONTEXT, configured()) == ""
    assert "JSON" in fault(CONTEXT, "Here it is:")
    assert "JSON" in fault(CONTEXT, "")
    everything = configured(**dict.fromkeys(GROUPS, True), num_train_epochs=4)
    assert fault(CONTEXT, everything) == "4 epochs of 188 examples or more are over 375 steps"


@pytest.mark.parametrize(
    "text", [r'{"\u0000": 1}', r'{"\ud800": 1}', r'{"data_generation": {"\ud800\u0000": 1}, "training": 1}']
)
def test_a_fault_can_be_stored_and_sent_whatever_the_teacher_wrote(text: str) -> None:
    said = fault(CONTEXT, text)
    assert said.isprintable()
    assert Generated.SelfEdit(fault=said).fault == said


@pytest.mark.parametrize("epochs", range(1, MOST_EPOCHS + 1))
def test_a_fault_is_what_is_over_the_step_limit(epochs: int) -> None:
    for groups in ((), ("use_size_augmentations",), (*GROUPS,)):
        flags = {group: group in groups for group in GROUPS}
        self_edit = configured(**flags, num_train_epochs=epochs)
        steps = epochs * len(DOMAIN.examples(CONTEXT, self_edit, seed=0)) // 2
        assert (fault(CONTEXT, self_edit) != "") == (steps > MOST_STEPS)


@pytest.mark.parametrize("batch_size", [0, 1, 2, 7])
def test_a_recipe_may_have_a_limit_of_its_own(batch_size: int) -> None:
    recipe = replace(DOMAIN.student_recipe, max_steps=24, batch_size=batch_size)
    for groups, epochs in itertools.product(((), ("use_size_augmentations",), (*GROUPS,)), range(1, MOST_EPOCHS + 1)):
        self_edit = configured(**{group: group in groups for group in GROUPS}, num_train_epochs=epochs)
        examples = len(DOMAIN.examples(CONTEXT, self_edit, seed=0))
        steps = epochs * examples // (batch_size or examples)
        assert (DOMAIN.fault(CONTEXT, self_edit, recipe=recipe) != "") == (steps > 24)


def test_random_configurations_keep_to_a_limit_and_are_the_plainest_where_it_is_too_low() -> None:
    for max_steps in (1, 30):
        recipe = replace(DOMAIN.student_recipe, max_steps=max_steps)
        drawn = [DOMAIN.baseline("random", CONTEXT, seed=seed, recipe=recipe) for seed in range(20)]
        faults = {DOMAIN.fault(CONTEXT, self_edit, recipe=recipe) for self_edit in drawn}
        assert faults == ({""} if max_steps == 30 else {"1 epochs of 4 examples or more are over 1 steps"})
        assert max_steps == 30 or {read_configuration(text).epochs for text in drawn} == {1}


def test_the_oracle_is_as_the_recipe_says_or_what_the_limit_leaves_of_it() -> None:
    two = replace(CONTEXT, demonstrations=CONTEXT.demonstrations[:2])

    def oracle(context: Context = CONTEXT, **changed: Any) -> Configuration:
        recipe = replace(DOMAIN.student_recipe, **changed)
        return read_configuration(DOMAIN.baseline("oracle", context, seed=0, recipe=recipe))

    papers = Configuration(groups=(*GROUPS,), strategy=Strategy.OUTPUT, learning_rate=1e-4, epochs=2)
    assert oracle() == oracle(max_steps=250) == papers
    assert oracle(two, max_steps=96) == papers
    assert oracle(two, max_steps=95) == replace(papers, groups=(*GROUPS,)[:-1]), (
        "fewer augmentations before fewer epochs"
    )
    assert oracle(max_steps=249) == replace(papers, epochs=1), "of one group there may be as many"
    assert oracle(max_steps=1) == replace(papers, groups=(*GROUPS,)[:1], epochs=1)
    assert oracle(learning_rate=2e-3, epochs=1) == replace(papers, learning_rate=2e-3, epochs=1)
    assert oracle(learning_rate=0.5, epochs=100, max_steps=5000) == replace(papers, learning_rate=1e-2, epochs=20)


@pytest.mark.parametrize("max_steps", [30, 72, 375])
def test_what_is_held_to_the_schema_is_within_the_step_limit(max_steps: int) -> None:
    recipe = replace(DOMAIN.student_recipe, max_steps=max_steps)
    held = held_to(recipe)
    allowed = [text for text in some_configurations() if held.is_valid(json.loads(text))]
    assert {read_configuration(text).groups for text in allowed} > ({()} if max_steps > 30 else set())
    assert {DOMAIN.fault(CONTEXT, text, recipe=recipe) for text in allowed} == {""}


@pytest.mark.parametrize("max_steps", [1, 1_000_000])
def test_a_limit_that_is_too_low_for_any_or_too_high_for_all_does_not_change_the_schema(max_steps: int) -> None:
    held = held_to(replace(DOMAIN.student_recipe, max_steps=max_steps))
    assert all(held.is_valid(json.loads(text)) for text in some_configurations())


def held_to(recipe: LoraRecipe) -> jsonschema.Draft202012Validator:
    """But for the digits of the learning rate, which a validator in floating point cannot count."""
    schema = DOMAIN.self_edit_schema(CONTEXT, style="configuration", recipe=recipe)
    return jsonschema.Draft202012Validator(json.loads(schema.replace(', "multipleOf": 1e-06', "")))


def some_configurations() -> list[str]:
    """Of some groups, with all numbers of epochs."""
    chosen = itertools.product(((), ("use_size_augmentations",), (*GROUPS,)), range(1, MOST_EPOCHS + 1))
    return [
        configured(**{group: group in groups for group in GROUPS}, num_train_epochs=epochs) for groups, epochs in chosen
    ]


def test_steps_are_counted_no_further_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def is_small(task: object) -> bool:
        made.append(task)
        return True

    monkeypatch.setattr(few_shot, "_is_small", is_small)
    everything = dict.fromkeys(GROUPS, True)
    assert fault(CONTEXT, configured(**everything, num_train_epochs=3)) == ""
    assert made == [], "250 examples, the most, are within the limit"
    assert fault(CONTEXT, configured(**everything, num_train_epochs=20))
    assert len(made) == 38
    assert len(DOMAIN.examples(CONTEXT, configured(**everything), seed=0)) == 250
    assert len(made) > 38 + 250


def test_random_configurations_have_no_fault_and_no_practice_is_made_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts, of grids, and of so many demonstrations that there is as much practice as there may be."""
    many = tuple(Demonstration(input=f"{i} {j}", output=f"{j} {i}") for i in (1, 2, 3, 4) for j in (5, 6, 7))
    contexts = [CONTEXT, WORDS, replace(CONTEXT, demonstrations=many)]
    with monkeypatch.context() as patched:
        for making in ("tasks_on_grids", "tasks_on_texts"):
            patched.setattr(few_shot, making, None)
        drawn = [(context, seed, random_one(context, seed=seed)) for context in contexts for seed in range(99)]
    read = [read_configuration(self_edit) for _, _, self_edit in drawn]
    assert {configuration.epochs for configuration in read} > {1, 2, 3, MOST_EPOCHS}
    assert {group for configuration in read for group in configuration.groups} == {*GROUPS}
    for context, seed, self_edit in drawn:
        assert fault(context, self_edit) == ""
        if seed < 5:
            steps = read_configuration(self_edit).epochs * len(DOMAIN.examples(context, self_edit, seed=seed)) // 2
            assert steps <= MOST_STEPS


def test_a_test_input_is_asked_in_six_ways_and_two_orders() -> None:
    asks = DOMAIN.asks(CONTEXT)
    assert [ask.question for ask in asks] == [0] * 12
    assert len({ask.prompt for ask in asks}) >= 6
    assert any(ask.prompt.endswith("Input:\n0 4\n0 0\nOutput:\n") for ask in asks), "flipped"
    assert len(DOMAIN.asks(WORDS)) == 2, "texts are not changed"


def test_answers_are_changed_back_and_elected() -> None:
    """Whoever flips the columns of what it is asked, whatever that is, is right in all ways but two."""

    def flipped(prompt: str) -> str:
        asked = prompt.rpartition("Input:\n")[2].partition("\nOutput:")[0]
        return "\n".join(" ".join(reversed(row.split())) for row in asked.splitlines())

    texts = [f"{flipped(ask.prompt)}\n\nInput:" for ask in DOMAIN.asks(CONTEXT)]
    answer = DOMAIN.answer(CONTEXT, 0, texts)
    assert answer.split("\n\n")[0] == "0 4\n0 0"
    assert DOMAIN.grade(CONTEXT.questions[0], answer) == {"exact": 1.0, "cells": 1.0}
    assert DOMAIN.answer(CONTEXT, 0, ["I think"] * 12) == "", "blank, as it is counted"
    assert DOMAIN.answer(WORDS, 0, ["houses\n\nInput", "house"]) == "houses\n\nhouse"


@pytest.mark.parametrize(
    ("answer", "exact", "cells"),
    [
        ("0 4\n0 0", 1.0, 1.0),
        ("9 9\n9 9\n\n0 4\n0 0", 1.0, 1.0),
        ("0 4\n0 1", 0.0, 0.75),
        ("0 4 0 0", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_the_better_attempt_is_graded(answer: str, exact: float, cells: float) -> None:
    assert DOMAIN.grade(CONTEXT.questions[0], answer) == {"exact": exact, "cells": cells}


def test_a_task_is_solved_if_every_input_is() -> None:
    assert DOMAIN.score("exact", [1.0, 0.0]) == 0.0
    assert DOMAIN.score("exact", [1.0, 1.0]) == 1.0
    assert DOMAIN.score("cells", [1.0, 0.5]) == 0.75


@pytest.mark.parametrize(
    ("context", "field"),
    [
        (Context(title="t", passage="text", demonstrations=CONTEXT.demonstrations), "c.passage"),
        (Context(title="t", demonstrations=CONTEXT.demonstrations[:1]), "c.demonstrations"),
        (
            Context(title="t", demonstrations=(*CONTEXT.demonstrations, Demonstration(input="1", output=" "))),
            "c.demonstrations[3]",
        ),
        (Context(title="t", demonstrations=CONTEXT.demonstrations), "c.questions"),
        (replace(CONTEXT, demonstrations=CONTEXT.demonstrations[:1] * (MOST_DEMONSTRATIONS + 1)), "c.demonstrations"),
    ],
)
def test_a_context_that_is_no_task_is_refused(context: Context, field: str) -> None:
    with pytest.raises(InvalidField) as raised:
        DOMAIN.check(context, field="c")
    assert raised.value.metadata["field"] == field
