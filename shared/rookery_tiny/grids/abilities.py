"""What a grid model can do: `python -m rookery_tiny.grids.abilities FOLDER`. The figures of its card.

Measured on puzzles of known rules and on those of a run's training rules, never on its test rules. A puzzle counts as
solved if the domain's two attempts at each of its test inputs hold the right grid.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rookery_engines.adapted import BASE, AdaptedModel
from rookery_engines.constraints import Constraints
from rookery_engines.decoding import Row, decode
from rookery_engines.models import ModelSource, load_model, pad_token, stop_tokens
from rookery_engines.types import AdapterRef
from rookery_shared.domains import find_domain
from rookery_shared.domains.few_shot import CELLS, EXACT
from rookery_shared.grids.augmentations import GROUPS
from rookery_shared.grids.configuration import (
    BadConfiguration,
    Configuration,
    Strategy,
    read_configuration,
    write_configuration,
)
from rookery_shared.types import Context, LoraRecipe, Sampling
from rookery_tiny.grids.card import tables
from rookery_tiny.grids.documents import STYLE
from rookery_tiny.grids.puzzles import Known, as_context, draw_puzzle, make_contexts, rules
from rookery_training.batch import AdapterTask, BatchTrainer

STUDENT = replace(
    find_domain("few_shot").student_recipe, rank=8, alpha=32, targets=("gate_proj", "up_proj", "down_proj")
)
"""How puzzles are trained on, as in the quickstart; a configuration decides the rest. The domain's own rank is nearly
the model's width."""
PUZZLE_SEED = 1000
ASKED = 48
"""Puzzles of each kind that are asked of the base model."""
WRITTEN = 64
"""Configurations that the model writes."""
PRACTISED = 12
"""Puzzles that each configuration is tried on."""
AT_ONCE = 144
"""Texts that are written together."""
LONGEST_ANSWER, LONGEST_CONFIGURATION = 48, 300
RATES = (1e-5, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Means over puzzles, in [0, 1]."""

    solved: float
    cells: float
    """Share of an output's cells that are right, in the better attempt."""
    which: tuple[str, ...]
    """Titles of those that are solved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A configuration, and what training by it came to on new rules."""

    label: str
    """The configuration in words."""
    configuration: Configuration
    score: Score
    seconds: float
    """Training, per puzzle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    known_single: Score
    """In context, known rules of one step."""
    known_pair: Score
    """In context, known rules of two steps."""
    new: Score
    """In context, rules that it never met."""
    held_valid: float
    """Share of configurations, written when held to the schema, that can be read."""
    held_usable: float
    """Share of these that ask for no more steps than are allowed."""
    free_valid: float
    """Share of configurations that can be read, written when held to nothing."""
    tried: tuple[Tried, ...]


def sweep() -> Iterator[Configuration]:
    """Rates first, then what else one might choose at a good one."""
    plain = Configuration(groups=(), strategy=Strategy.OUTPUT, learning_rate=1e-3, epochs=20)
    basic = replace(plain, groups=("use_basic_augmentations",), epochs=3)
    for start in (plain, basic):
        yield from (replace(start, learning_rate=rate) for rate in RATES)
    yield replace(plain, strategy=Strategy.ALL)
    yield replace(plain, epochs=5)
    yield replace(basic, strategy=Strategy.ALL)
    yield replace(basic, epochs=1)
    yield from (replace(basic, groups=(group,)) for group in GROUPS if group not in basic.groups)
    yield replace(basic, groups=(*GROUPS,))


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    asked: int = ASKED,
    written: int = WRITTEN,
    practised: int = PRACTISED,
    demonstrations: int = 2,
    configurations: Sequence[Configuration] = (*sweep(),),
) -> Abilities:
    """All abilities; the configurations in the order in which they are given."""
    answering = Answering(model, tokenizer, adapters=max(1, practised))
    new = make_contexts(Known.TRAIN, max(asked, practised), seed=PUZZLE_SEED, demonstrations=demonstrations)
    held, free = (answering.configurations(new[:asked], written, held=held) for held in (True, False))
    return Abilities(
        known_single=answering.score(known_contexts(asked, steps=1, demonstrations=demonstrations)),
        known_pair=answering.score(known_contexts(asked, steps=2, demonstrations=demonstrations)),
        new=answering.score(new[:asked]),
        held_valid=statistics.mean(_is_valid(text) for _, text in held),
        held_usable=statistics.mean(
            not find_domain("few_shot").fault(context, text, recipe=STUDENT) for context, text in held
        ),
        free_valid=statistics.mean(_is_valid(text) for _, text in free),
        tried=tuple(try_out(answering, chosen, new[:practised]) for chosen in configurations),
    )


def known_contexts(count: int, *, steps: int, demonstrations: int) -> list[Context]:
    """Puzzles of known rules of so many steps."""
    rng = random.Random(f"known-{steps}-{PUZZLE_SEED}")
    chosen = [rule for rule in rules(Known.PRETRAINING) if len(rule.steps) == steps]
    puzzles = [draw_puzzle(rng.choice(chosen), rng, demonstrations=demonstrations) for _ in range(count)]
    return [as_context(puzzle, title=f"{number}: {puzzle.rule.name}") for number, puzzle in enumerate(puzzles)]


class Answering:
    """The model, with the adapters that its last configuration made."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, adapters: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._adapted = AdaptedModel(model, max_adapters=adapters)
        self._stop = stop_tokens(model, tokenizer)
        self._constraints = Constraints(tokenizer, vocabulary=model.config.vocab_size, stop=sorted(self._stop))

    def score(self, contexts: Sequence[Context], adapters: Sequence[AdapterRef] = ()) -> Score:
        """Each context with its own adapter, or all with none."""
        domain = find_domain("few_shot")
        self._adapted.load(adapters)
        names = [adapter.name for adapter in adapters] or [BASE] * len(contexts)
        asks = [domain.asks(context) for context in contexts]
        rows = [
            self._row(ask.prompt, Sampling(temperature=0.0, max_new_tokens=LONGEST_ANSWER), adapter=name)
            for asked, name in zip(asks, names, strict=True)
            for ask in asked
        ]
        texts = iter(self._write(rows))
        solved, cells = [], []
        for context, asked in zip(contexts, asks, strict=True):
            given = [(ask.question, next(texts)) for ask in asked]
            grades = [
                domain.grade(question, domain.answer(context, number, [text for q, text in given if q == number]))
                for number, question in enumerate(context.questions)
            ]
            solved.append(domain.score(EXACT, [grade[EXACT] for grade in grades]))
            cells.append(domain.score(CELLS, [grade[CELLS] for grade in grades]))
        which = tuple(context.title for context, score in zip(contexts, solved, strict=True) if score)
        return Score(solved=statistics.mean(solved), cells=statistics.mean(cells), which=which)

    def configurations(self, contexts: Sequence[Context], count: int, *, held: bool) -> list[tuple[Context, str]]:
        """So many, each with the context that it was written for; all contexts in turn."""
        domain, sampling = find_domain("few_shot"), Sampling(top_p=1.0, max_new_tokens=LONGEST_CONFIGURATION)
        asked = [contexts[i % len(contexts)] for i in range(count)]
        schemas = [domain.self_edit_schema(c, style=STYLE, recipe=STUDENT) if held else "" for c in asked]
        prompts = [domain.self_edit_prompt(context, style=STYLE) for context in asked]
        rows = [
            self._row(prompt, sampling, seed=i, schema=schema)
            for i, (prompt, schema) in enumerate(zip(prompts, schemas, strict=True))
        ]
        return [*zip(asked, self._write(rows), strict=True)]

    def _row(self, prompt: str, sampling: Sampling, *, seed: int = 0, adapter: str = BASE, schema: str = "") -> Row:
        held = self._constraints.hold_to(schema)
        return Row(
            index=0, prompt=self.tokenizer.encode(prompt), sampling=sampling, seed=seed, adapter=adapter, held=held
        )

    def _write(self, rows: Sequence[Row]) -> list[str]:
        for first in range(0, len(rows), AT_ONCE):
            part = rows[first : first + AT_ONCE]
            for _ in decode(self._adapted, part, pad=pad_token(self.tokenizer), stop=self._stop):
                pass
        return [str(self.tokenizer.decode(row.tokens)).strip() for row in rows]


def try_out(answering: Answering, configuration: Configuration, contexts: Sequence[Context]) -> Tried:
    """Train on each context by the configuration and ask."""
    domain, text = find_domain("few_shot"), write_configuration(configuration)
    recipe: LoraRecipe = domain.recipe(text, STUDENT)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            AdapterTask(
                key=f"{text} {number}",
                examples=domain.examples(context, text, seed=0),
                recipe=recipe,
                seed=0,
                out=Path(folder, str(number)),
            )
            for number, context in enumerate(contexts)
        ]
        started = time.perf_counter()
        failures = [outcome.failure for outcome in BatchTrainer(answering.model, answering.tokenizer).train(tasks)]
        seconds = (time.perf_counter() - started) / len(tasks)
        assert not any(failures), failures
        score = answering.score(contexts, [AdapterRef(name=task.key, folder=task.out) for task in tasks])
    return Tried(label=described(configuration), configuration=configuration, score=score, seconds=seconds)


def described(configuration: Configuration) -> str:
    """In words: what is practised with, learning rate times epochs, what the loss counts."""
    groups = ", ".join(group.split("_")[1] for group in configuration.groups) or "no"
    counted = "outputs" if configuration.strategy is Strategy.OUTPUT else "all tokens"
    return f"{groups} augmentations, {configuration.learning_rate:g} x {configuration.epochs}, {counted}"


def _is_valid(text: str) -> bool:
    try:
        read_configuration(text)
    except BadConfiguration:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="the seed that it was pre-trained with, for the record")
    parser.add_argument("--asked", type=int, default=ASKED, help="puzzles of each kind")
    parser.add_argument("--practised", type=int, default=PRACTISED, help="puzzles that each configuration is tried on")
    parser.add_argument("--demonstrations", type=int, default=2, help="of each puzzle")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves that to torch")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(ModelSource(source=str(arguments.folder)))
    abilities = measure(
        model,
        tokenizer,
        asked=arguments.asked,
        practised=arguments.practised,
        demonstrations=arguments.demonstrations,
    )
    content = {
        "seed": arguments.seed,
        "parameters": model.num_parameters(),
        "demonstrations": arguments.demonstrations,
        **asdict(abilities),
    }
    (arguments.folder / "abilities.json").write_text(json.dumps(content, indent=2) + "\n")
    print(tables([content]))


if __name__ == "__main__":
    main()
