"""Knowledge incorporation: learn a passage so that questions about it are answered without it.

Owns the prompts and rules of the SEAL paper's section 4.1 (arXiv 2506.10943) as its code applies them; the strings of
the prompts are those of the paper's public repository (MIT licence), since results are comparable only if they match.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence

from rookery_shared.domains.base import Ask
from rookery_shared.domains.graders import GRADERS, JUDGE, LOGLIK, NAMES
from rookery_shared.errors import EmptyPassage, InvalidField
from rookery_shared.types import Context, Example, LoraRecipe, Question

SELF_EDIT_PROMPTS = {
    "implications": (
        "Let's read the following passage and produce a list of implications derived directly or indirectly from the "
        "content.\n\nPassage:\n{title}\n{passage}\n\nImplications:\n"
    ),
    "implications-long": (
        "Let's read the following passage and produce a long list of implications derived directly or indirectly from "
        "the content.\n\nPassage:\n{title}\n{passage}\n\nImplications:\n"
    ),
    "implications-very-long": (
        "Let's read the following passage and produce a very long list of implications derived directly or indirectly "
        "from the content.\n\nPassage:\n{title}\n{passage}\n\nImplications:\n"
    ),
    "rewrite": (
        "Let's read the following passage and rewrite it in a few different ways, each one separated by a newline.\n\n"
        "Passage:\n{title}\n{passage}\n\nRewritten passages:\n"
    ),
    "self-qa": (
        "Let's read the following passage and rewrite it in a question-answer format.\n\n"
        "Passage:\n{title}\n{passage}\n\nQuestion 1: "
    ),
}
ANSWER_PROMPT = "Let's answer a question directly and concisely.\nQuestion: {question}\nAnswer:\n"

_NUMBERED_QUESTION = re.compile(r"Question \d+:")
_ANSWER_LABEL = re.compile(r"Answer\s*:")
_BEFORE_NUMBERED_QUESTION = re.compile(r"\n(?=Question \d+:)")
_BLOCK = re.compile(r"Question \d+:\s*(?P<question>.+?)\s*\n\s*Answer\s*:[ \t]*(?P<answer>\S[^\n]*)", re.DOTALL)
_LONGEST_ANSWER = 200


def self_edit_prompt(*, title: str, passage: str, style: str) -> str:
    return SELF_EDIT_PROMPTS[style].format(title=title, passage=passage)


def answer_prompt(*, title: str, question: str) -> str:
    """The prompt that asks without the passage; the title says what the question is about."""
    return ANSWER_PROMPT.format(question=f"Topic: {title}\n{question}")


def training_sequences(*, title: str, passage: str, self_edit: str, split_newlines: bool = True) -> list[str]:
    """Turn a self-edit into the texts to train on; the last is always the passage itself.

    The rule is the reference's own: blocks between `---`, or numbered question-answer pairs, or lines.
    """
    text = self_edit.strip()
    parts = [part for piece in text.split("---") if (part := piece.strip())] or [text]
    if split_newlines:
        if _NUMBERED_QUESTION.search(text) and _ANSWER_LABEL.search(text):
            parts = _question_answer_blocks(text)
        else:
            parts = [line for part in parts for raw in part.splitlines() if (line := raw.strip())]
            if len(parts) >= 2 and parts[1].startswith("1."):
                parts = parts[1:]  # a chatty preamble before the list
    return [f"{title}\n{part}" for part in parts] + [f"{title}\n{passage.strip()}"]


def _question_answer_blocks(text: str) -> list[str]:
    blocks = [block for piece in _BEFORE_NUMBERED_QUESTION.split(text) if (block := piece.strip())]
    if blocks and not blocks[0].startswith("Question"):
        blocks[0] = f"Question 1: {blocks[0]}"  # the prompt ends with this label, so the completion lacks it
    return blocks


class Knowledge:
    """The knowledge domain: passages and questions about them."""

    name = "knowledge"
    version = 1
    styles: Sequence[str] = tuple(SELF_EDIT_PROMPTS)
    graders: Sequence[str] = NAMES
    rewards: Sequence[str] = (LOGLIK, *GRADERS, JUDGE)
    baselines: Sequence[str] = ()
    student_recipe = LoraRecipe()
    answer_tokens = 64
    keeps_all = False

    def check(self, context: Context, *, field: str) -> None:
        if not context.passage.strip():
            raise EmptyPassage(f"{field}.passage is empty", field=f"{field}.passage")
        if context.demonstrations:
            where = f"{field}.demonstrations"
            raise InvalidField(f"{where}: a passage has none; a task is of the domain few_shot", field=where)

    def self_edit_prompt(self, context: Context, *, style: str) -> str:
        return self_edit_prompt(title=context.title, passage=context.passage, style=style)

    def self_edit_schema(self, context: Context, *, style: str, recipe: LoraRecipe) -> str:
        return ""

    def fault(self, context: Context, self_edit: str, *, recipe: LoraRecipe) -> str:
        """Any text can be learned, unless it is too long for a limit of steps."""
        if not recipe.max_steps:
            return ""
        sequences = len(self.examples(context, self_edit, seed=0))
        if sequences <= recipe.most_examples(recipe.max_steps):
            return ""
        return f"{recipe.epochs} epochs of {sequences} sequences are over {recipe.max_steps} steps"

    def recipe(self, self_edit: str, recipe: LoraRecipe) -> LoraRecipe:
        return recipe

    def baseline(self, name: str, context: Context, *, seed: int, recipe: LoraRecipe) -> str:
        raise KeyError(name)

    def examples(self, context: Context, self_edit: str, *, seed: int) -> list[Example]:
        sequences = training_sequences(title=context.title, passage=context.passage, self_edit=self_edit)
        return [Example(completion=sequence) for sequence in sequences]

    def question_prompt(self, context: Context) -> str:
        return self.self_edit_prompt(context, style="self-qa")

    def read_questions(self, text: str) -> list[Question]:
        """Pairs of "Question n:" and a one-line "Answer:"; a pair whose answer is missing or an essay is left out."""
        found: dict[str, Question] = {}
        for block in _question_answer_blocks(text.strip()):
            match = _BLOCK.match(block)
            if match and len(match["answer"]) <= _LONGEST_ANSWER:
                question = " ".join(match["question"].split())
                found.setdefault(question, Question(question=question, answer=match["answer"].strip()))
        return list(found.values())

    def asks(self, context: Context) -> list[Ask]:
        return [
            Ask(question=i, prompt=answer_prompt(title=context.title, question=q.question))
            for i, q in enumerate(context.questions)
        ]

    def answer(self, context: Context, question: int, texts: Sequence[str]) -> str:
        return texts[0].strip()

    def grade(self, question: Question, answer: str) -> Mapping[str, float]:
        return {name: grade(question, answer) for name, grade in GRADERS.items()}

    def score(self, reward: str, grades: Sequence[float]) -> float:
        """The mean, as the reference's."""
        return statistics.mean(grades)
