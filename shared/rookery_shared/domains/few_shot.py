"""Few-shot tasks: learn from a few demonstrations what makes the output of an input; grids as in ARC, or texts.

The self-edit is a configuration, which augmentations to practise with and how to optimise, after the SEAL paper's
section 4.2 (arXiv 2506.10943) and its code.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rookery.grids import Grid, NotAGrid, fits, from_text, to_text
from rookery_shared.domains.base import Ask
from rookery_shared.domains.graders import LIKELIHOOD
from rookery_shared.errors import InvalidField
from rookery_shared.grids.augmentations import GROUPS, QUERIES, Drawn
from rookery_shared.grids.configuration import (
    LEARNING_RATES,
    MOST_EPOCHS,
    BadConfiguration,
    Configuration,
    Strategy,
    draw_configuration,
    read_configuration,
    schema_to_write_by,
    write_configuration,
)
from rookery_shared.grids.practice import (
    Practice,
    Shown,
    choose,
    most_tasks,
    tasks_on_grids,
    tasks_on_texts,
)
from rookery_shared.grids.voting import ATTEMPTS, elect
from rookery_shared.types import Context, Demonstration, Example, LoraRecipe, Question, Schedule

MOST_STEPS = 375
"""Optimiser steps of one training, where its recipe has no limit of its own. More are refused."""
MOST_DRAWS = 1_000
"""Of configurations within a step limit."""
MOST_CHARACTERS = 16_000
"""Of one practice task: about 8,000 tokens."""
ORDERS = 2
"""Orders of the demonstrations in which a test input is asked."""
MOST_DEMONSTRATIONS = 16
"""Of a task; ARC's have up to 10. Practice grows with their square."""
BETWEEN_ATTEMPTS = "\n\n"
EXACT, CELLS = "exact", "cells"
RANDOM, ORACLE = "random", "oracle"
"""Baselines: any configuration that can surely be used, and one for all tasks, as the paper's authors chose one: every
augmentation, the loss on outputs, rate and epochs as the recipe says, which are theirs where nobody says otherwise."""

_SELF_EDIT_PROMPT = (
    "You are configuring a training pipeline for the task below. Choose what to practise with and how to train.\n\n"
    "{demonstrations}\n\n"
    "---\n"
    "data_generation: use_basic_augmentations (rotations, flips, reflections, translation), use_size_augmentations "
    "(larger cells), use_chain_augmentations (several of them), use_repeat_augmentations (the grid repeated); each "
    "true or false.\n"
    "training: strategy (train_using_all_tokens or train_using_output_tokens), learning_rate ({least:g} to {most:g}), "
    "num_train_epochs (1 to {epochs}).\n"
    "Answer with valid JSON only and no explanation:\n"
    '{{"data_generation": {{"use_basic_augmentations": ..., "use_size_augmentations": ..., "use_chain_augmentations": '
    '..., "use_repeat_augmentations": ...}}, "training": {{"strategy": ..., "learning_rate": ..., "num_train_epochs": '
    "...}}}}\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Query:
    """A way to ask for the output of a test input."""

    drawn: Drawn | None
    """How grids are changed; None leaves them, and texts, as they are."""
    order: tuple[int, ...]
    """Of the demonstrations."""


class FewShot:
    """The few-shot domain: tasks, and configurations to learn them by."""

    name = "few_shot"
    version = 1
    styles: Sequence[str] = ("configuration",)
    graders: Sequence[str] = ("exact/grid-1", "cells/1", "loglik/1", "likelihood/1")
    rewards: Sequence[str] = (EXACT, CELLS, LIKELIHOOD)
    baselines: Sequence[str] = (RANDOM, ORACLE)
    student_recipe = LoraRecipe(
        rank=128,
        alpha=16,
        targets=("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
        epochs=2,
        learning_rate=1e-4,
        schedule=Schedule.COSINE,
        warmup_steps=11,
        batch_size=2,
        max_tokens=8192,
    )
    answer_tokens = 2048
    keeps_all = True

    def check(self, context: Context, *, field: str) -> None:
        if context.passage:
            where = f"{field}.passage"
            raise InvalidField(f"{where}: a task has none; a text is of the domain knowledge", field=where)
        if len(context.demonstrations) < 2:
            where = f"{field}.demonstrations"
            raise InvalidField(f"{where}: practice leaves one out, so there must be two", field=where)
        if len(context.demonstrations) > MOST_DEMONSTRATIONS:
            where = f"{field}.demonstrations"
            raise InvalidField(f"{where}: at most {MOST_DEMONSTRATIONS}; practice leaves out any two", field=where)
        for position, shown in enumerate(context.demonstrations):
            if not shown.input.strip() or not shown.output.strip():
                where = f"{field}.demonstrations[{position}]"
                raise InvalidField(f"{where} lacks its input or its output", field=where)
        if not context.questions:
            where = f"{field}.questions"
            raise InvalidField(f"{where} is empty: a task needs a test input with its output", field=where)

    # --- the self-edit ------------------------------------------------------------------------------------------------

    def self_edit_prompt(self, context: Context, *, style: str) -> str:
        least, most = LEARNING_RATES
        shown = _shown([(d.input, d.output) for d in context.demonstrations])
        return _SELF_EDIT_PROMPT.format(demonstrations=shown, least=least, most=most, epochs=MOST_EPOCHS)

    def self_edit_schema(self, context: Context, *, style: str, recipe: LoraRecipe) -> str:
        """Within the step limit, too, however much practice comes of the augmentations."""

        def most_epochs(groups: tuple[str, ...]) -> int:
            counts = range(MOST_EPOCHS, 0, -1)
            return next((count for count in counts if not _may_exceed(context, groups, count, recipe)), 0)

        return json.dumps(schema_to_write_by(most_epochs))

    def fault(self, context: Context, self_edit: str, *, recipe: LoraRecipe) -> str:
        try:
            configuration = read_configuration(self_edit)
        except BadConfiguration as bad:
            return str(bad)
        if not _may_exceed(context, configuration.groups, configuration.epochs, recipe):
            return ""
        one_more = _most_examples(configuration.epochs, recipe) + 1
        if self._count(context, configuration.groups, most=one_more) < one_more:
            return ""
        return f"{configuration.epochs} epochs of {one_more} examples or more are over {_most_steps(recipe)} steps"

    def baseline(self, name: str, context: Context, *, seed: int, recipe: LoraRecipe) -> str:
        """Within the step limit however much comes of its augmentations, unless the limit is too low for any: no
        practice is made for it."""
        if name == ORACLE:
            return write_configuration(self._oracle(context, recipe))
        rng = random.Random(seed)
        drawn = (draw_configuration(rng) for _ in range(MOST_DRAWS))
        usable = (c for c in drawn if not _may_exceed(context, c.groups, c.epochs, recipe))
        return write_configuration(next(usable, None) or replace(draw_configuration(rng), groups=(), epochs=1))

    def _oracle(self, context: Context, recipe: LoraRecipe) -> Configuration:
        """What the limit leaves: of the augmentations the later groups go first, then epochs."""
        (least, most), epochs = LEARNING_RATES, min(recipe.epochs, MOST_EPOCHS)
        rate = min(max(recipe.learning_rate, least), most)
        whole = Configuration(groups=(*GROUPS,), strategy=Strategy.OUTPUT, learning_rate=rate, epochs=epochs)
        smaller = (
            replace(whole, groups=whole.groups[:some], epochs=count)
            for count in range(epochs, 0, -1)
            for some in range(len(GROUPS), 0, -1)
        )
        usable = (c for c in smaller if not _may_exceed(context, c.groups, c.epochs, recipe))
        return next(usable, None) or replace(whole, groups=whole.groups[:1], epochs=1)

    def examples(self, context: Context, self_edit: str, *, seed: int) -> list[Example]:
        """Without a self-edit, practice without augmentations."""
        groups = read_configuration(self_edit).groups if self_edit.strip() else ()
        rng = random.Random(seed)
        return [_as_example(task) for task in choose(self._tasks(context, groups, rng), rng)]

    def recipe(self, self_edit: str, recipe: LoraRecipe) -> LoraRecipe:
        try:
            configuration = read_configuration(self_edit)
        except BadConfiguration:
            return recipe
        return replace(
            recipe,
            learning_rate=configuration.learning_rate,
            epochs=configuration.epochs,
            completion_only_loss=configuration.strategy is Strategy.OUTPUT,
        )

    def question_prompt(self, context: Context) -> str:
        """Nobody is asked: a task comes with its test inputs."""
        return ""

    def read_questions(self, text: str) -> list[Question]:
        return []

    def _tasks(self, context: Context, groups: Sequence[str], rng: random.Random) -> Iterator[Practice[Any]]:
        """All practice, on grids if all is grids, else on texts; each task made when it is asked for."""
        shown = _as_grids(context.demonstrations)
        if shown is None:
            texts = [Shown(d.input, d.output) for d in context.demonstrations]
            return tasks_on_texts(texts, rng=rng, accepts=_is_short)
        return tasks_on_grids(shown, groups, rng=rng, accepts=_is_small)

    def _count(self, context: Context, groups: Sequence[str], *, most: int) -> int:
        """How many examples there are for one seed, up to `most`: no more are made."""
        return sum(1 for _ in itertools.islice(self._tasks(context, groups, random.Random(0)), most))

    # --- answers ------------------------------------------------------------------------------------------------------

    def asks(self, context: Context) -> list[Ask]:
        """Each test input as it is and, if all is grids, changed in five ways; in two orders of the demonstrations."""
        asked: list[Ask] = []
        queries = _queries(context)
        for number, question in enumerate(context.questions):
            for query in queries:
                pairs = [context.demonstrations[place] for place in query.order]
                shown = [Shown(_change(query, d.input), _change(query, d.output)) for d in pairs]
                asked.append(Ask(question=number, prompt=asking(shown, _change(query, question.question))))
        return asked

    def answer(self, context: Context, question: int, texts: Sequence[str]) -> str:
        """The elected attempts, a blank line between them; nothing if no text holds what an output could be."""
        outputs = [text.strip().split("\n\n")[0].strip() for text in texts]
        if _as_grids(context.demonstrations) is None:
            return BETWEEN_ATTEMPTS.join(text for text, _ in Counter(filter(None, outputs)).most_common(ATTEMPTS))
        predictions: defaultdict[str, list[Grid]] = defaultdict(list)
        for query, output in zip(_queries(context), outputs, strict=True):
            try:
                grid = from_text(output)
            except NotAGrid:
                continue
            name = query.drawn.name if query.drawn else ""
            predictions[name].append(query.drawn.undo(grid) if query.drawn else grid)
        return BETWEEN_ATTEMPTS.join(map(to_text, elect(predictions)))

    def grade(self, question: Question, answer: str) -> Mapping[str, float]:
        """Of the better attempt."""
        attempts = answer.split(BETWEEN_ATTEMPTS)
        return {
            EXACT: max(float(_same(attempt, question.answer)) for attempt in attempts),
            CELLS: max(_cells(attempt, question.answer) for attempt in attempts),
        }

    def score(self, reward: str, grades: Sequence[float]) -> float:
        """A task is solved if every test input is; cells and likelihoods have their mean."""
        return min(grades) if reward == EXACT else statistics.mean(grades)


def _most_steps(recipe: LoraRecipe) -> int:
    return recipe.max_steps or MOST_STEPS


def _most_examples(epochs: int, recipe: LoraRecipe) -> int:
    """With which so many epochs are within the step limit."""
    return replace(recipe, epochs=epochs).most_examples(_most_steps(recipe))


def _may_exceed(context: Context, groups: Sequence[str], epochs: int, recipe: LoraRecipe) -> bool:
    """Whether it could be over the step limit, by the most practice that could come of the groups."""
    return most_tasks(len(context.demonstrations), groups) > _most_examples(epochs, recipe)


def _shown(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n\n".join(f"Input:\n{before}\nOutput:\n{after}" for before, after in pairs)


def asking(demonstrations: Sequence[Shown[str]], asked: str) -> str:
    """Ends where the output begins."""
    return _shown([*((shown.input, shown.output) for shown in demonstrations), (asked, "")])


def _as_grids(demonstrations: Sequence[Demonstration]) -> list[Shown[Grid]] | None:
    """None if any side is no grid."""
    try:
        return [Shown(from_text(d.input), from_text(d.output)) for d in demonstrations]
    except NotAGrid:
        return None


def _as_example(task: Practice[Any]) -> Example:
    shown, asked = [*map(_in_text, task.demonstrations)], _in_text(task.asked)
    return Example(prompt=asking(shown, asked.input), completion=asked.output, end=True)


def _in_text(shown: Shown[Any]) -> Shown[str]:
    if isinstance(shown.input, str):
        return shown
    return Shown(to_text(shown.input), to_text(shown.output))


def _is_short(task: Practice[str]) -> bool:
    return sum(map(len, task.sides)) <= MOST_CHARACTERS


def _is_small(task: Practice[Grid]) -> bool:
    """A cell is two characters of a text."""
    cells = sum(len(grid) * len(grid[0]) for grid in task.sides)
    return 2 * cells <= MOST_CHARACTERS and all(map(fits, task.sides))


def _queries(context: Context) -> list[_Query]:
    """The same for each test input, the plainest first."""
    places = range(len(context.demonstrations))
    rng = random.Random(context.title)
    orders = [tuple(places), *(tuple(rng.sample(places, len(places))) for _ in range(ORDERS - 1))]
    questions = all(_is_grid(question.question) for question in context.questions)
    drawn: list[Drawn | None] = [None]
    if questions and _as_grids(context.demonstrations) is not None:
        drawn += [augmentation.draw(rng) for augmentation in QUERIES]
    return [_Query(drawn=change, order=order) for change in drawn for order in orders]


def _change(query: _Query, text: str) -> str:
    return text if query.drawn is None else to_text(query.drawn.apply(from_text(text)))


def _is_grid(text: str) -> bool:
    try:
        from_text(text)
    except NotAGrid:
        return False
    return True


def _same(one: str, other: str) -> bool:
    return one.split() == other.split() and _shape(one) == _shape(other)


def _shape(text: str) -> list[int]:
    return [len(line.split()) for line in text.strip().splitlines()]


def _cells(attempt: str, gold: str) -> float:
    """Share of the gold's cells, or words, that are right; 0 for another shape."""
    if not gold.split() or _shape(attempt) != _shape(gold):
        return 0.0
    return statistics.mean(float(a == b) for a, b in zip(attempt.split(), gold.split(), strict=True))
