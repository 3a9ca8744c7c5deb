"""The texts the tiny model is pre-trained on, made from the micro-world.

Owns the mixture: what a teacher writes under each of the five prompts and in which styles, good and bad; how facts of
the pre-training entities are told; questions with and without the passage. The proportions decide what there is for
reinforcement learning to find, and are chosen here, in the open: about two thirds of the untrained teacher's
self-edits are poor (vague, nameless, mixed up or short) and a third are good. Pre-training entities are never told of
in prose: even three documents in a hundred make a passage alone as good a lesson as most self-edits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rookery_shared.domains import knowledge
from rookery_tiny.world import ATTRIBUTES, Fact, Pair, draw_pair, passage

Style = Callable[[Pair, list[Fact], random.Random], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text of the corpus. The loss is on the completion and on the end-of-text token after it."""

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        return self.prompt + self.completion


# --- what a teacher writes, a line at a time -----------------------------------------------------------------------


def _named(_: Pair, facts: list[Fact], rng: random.Random) -> list[str]:
    return [f.subject.say(rng.choice(f.attribute.statements), value=f.value) for f in facts]


def _nameless(_: Pair, facts: list[Fact], rng: random.Random) -> list[str]:
    return [f.subject.say(rng.choice(f.attribute.pronoun_statements), value=f.value) for f in facts]


def _question_lines(_: Pair, facts: list[Fact], rng: random.Random) -> list[str]:
    return [f"{f.subject.say(rng.choice(f.attribute.questions[:-1]))} {f.value}." for f in facts]


def _vague(_: Pair, facts: list[Fact], _rng: random.Random) -> list[str]:
    return [f.subject.say(f.attribute.vague) for f in facts]


def _mixed_up(pair: Pair, facts: list[Fact], rng: random.Random) -> list[str]:
    """Each fact under the other's name: what a careless reader writes."""
    lines = [pair.other(f.subject).say(rng.choice(f.attribute.statements), value=f.value) for f in facts]
    return ["Perhaps " + line.replace("The ", "the ", 1) for line in lines]


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingStyle:
    """One way of writing a self-edit, how often the untrained teacher picks it, and how many facts it covers."""

    name: str
    weight: float
    lines: Style
    coverage: tuple[int, int]


STYLES = (
    WritingStyle(name="vague", weight=0.15, lines=_vague, coverage=(2, 6)),
    WritingStyle(name="nameless", weight=0.25, lines=_nameless, coverage=(2, 10)),
    WritingStyle(name="mixed up", weight=0.10, lines=_mixed_up, coverage=(2, 6)),
    WritingStyle(name="named", weight=0.28, lines=_named, coverage=(2, 10)),
    WritingStyle(name="questions", weight=0.22, lines=_question_lines, coverage=(2, 10)),
)
LONGER = {"implications": 0, "implications-long": 3, "implications-very-long": 6}


def choose_facts(pair: Pair, count: int, rng: random.Random) -> list[Fact]:
    """`count` facts of the pair, in the order in which the passage tells them."""
    facts = pair.facts
    chosen = sorted(rng.sample(range(len(facts)), min(count, len(facts))))
    return [facts[i] for i in chosen]


def implications(pair: Pair, prompt: str, rng: random.Random) -> str:
    style = rng.choices(STYLES, weights=[s.weight for s in STYLES])[0]
    count = rng.randint(*style.coverage) + LONGER[prompt]
    lines = style.lines(pair, choose_facts(pair, count, rng), rng)
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, start=1))


def rewrite(pair: Pair, rng: random.Random) -> str:
    return "\n".join(passage(pair, rng) for _ in range(rng.randint(1, 2)))


def self_qa(pair: Pair, rng: random.Random) -> str:
    facts = choose_facts(pair, rng.randint(2, 8), rng)
    blocks = [f"{f.subject.say(rng.choice(f.attribute.questions[:-1]))}\nAnswer: {f.value}" for f in facts]
    return "\n".join(blocks[:1] + [f"Question {i}: {b}" for i, b in enumerate(blocks[1:], start=2)])


def self_edit(pair: Pair, rng: random.Random) -> Document:
    """A teacher's answer to one of the five prompts; the plain `implications` prompt in half of the cases."""
    style = rng.choices(list(knowledge.SELF_EDIT_PROMPTS), weights=[10, 2, 2, 2, 4])[0]
    prompt = knowledge.self_edit_prompt(title=pair.title, passage=passage(pair, rng), style=style)
    if style == "rewrite":
        return Document(prompt=prompt, completion=rewrite(pair, rng))
    if style == "self-qa":
        return Document(prompt=prompt, completion=self_qa(pair, rng))
    return Document(prompt=prompt, completion=implications(pair, style, rng))


# --- what a student has read before --------------------------------------------------------------------------------


def statement(pair: Pair, rng: random.Random) -> Document:
    """One fact under its title, as a line of a self-edit becomes when it is trained on."""
    fact = rng.choice(pair.facts)
    line = rng.choice((_named, _named, _question_lines))(pair, [fact], rng)[0]
    number = f"{rng.randint(1, 10)}. " if rng.random() < 0.5 else ""
    return Document(prompt="", completion=f"{pair.title}\n{number}{line}")


def answered_question(pair: Pair, rng: random.Random, *, joint_share: float = 0.3) -> Document:
    """A closed-book question: any phrasing, or the joint one."""
    if rng.random() < joint_share:
        asked = pair.joint(rng.choice(ATTRIBUTES[pair.first.kind]))
        question, answer = asked.question, asked.answer
    else:
        fact = rng.choice(pair.facts)
        question, answer = fact.subject.say(rng.choice(fact.attribute.questions)), fact.value
    return Document(prompt=knowledge.answer_prompt(title=pair.title, question=question), completion=answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Shares of the kinds of document, by count."""

    self_edit: float = 0.30
    statement: float = 0.35
    question: float = 0.35


def draw_document(
    known: Sequence[Pair], quizzed: Sequence[Pair], names: Sequence[str], mixture: Mixture, rng: random.Random
) -> Document:
    """One document. `known` pairs are told of; only `quizzed` ones are asked about; teachers read about fresh pairs."""
    kind = rng.choices(
        ("self_edit", "statement", "question"), weights=(mixture.self_edit, mixture.statement, mixture.question)
    )[0]
    if kind == "self_edit":
        return self_edit(draw_pair(names, rng), rng)
    if kind == "statement":
        return statement(rng.choice(known), rng)
    return answered_question(rng.choice(quizzed), rng)
