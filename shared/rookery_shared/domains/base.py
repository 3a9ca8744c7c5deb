"""What a domain decides. A service asks these questions and never which domain it is talking to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rookery_shared.types import Context, Example, LoraRecipe, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A prompt for a student, and the question of its context that it asks."""

    question: int
    prompt: str


class Domain(Protocol):
    """A kind of context: how it is taught, learned, asked and graded."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int:
        """Of `examples`: rises when they come out otherwise. Adapters of another version are not reused."""
        ...

    @property
    def styles(self) -> Sequence[str]:
        """The prompts that it has for a teacher; the first is the default."""
        ...

    @property
    def rewards(self) -> Sequence[str]:
        """Names of the graders that may pay; the first is the default."""
        ...

    @property
    def baselines(self) -> Sequence[str]:
        """Names of its ways to adapt without a teacher, beside training on the context alone."""
        ...

    @property
    def student_recipe(self) -> LoraRecipe:
        """How a student is trained where nobody says otherwise."""
        ...

    @property
    def answer_tokens(self) -> int:
        """Longest answer of a student."""
        ...

    @property
    def keeps_all(self) -> bool:
        """Whether ReST-EM imitates every self-edit that gains, not only the best of its context."""
        ...

    def check(self, context: Context, *, field: str) -> None:
        """Raises InvalidField or EmptyPassage for a context that is none of this domain, naming the field."""
        ...

    # --- the self-edit ------------------------------------------------------------------------------------------------

    def self_edit_prompt(self, context: Context, *, style: str) -> str:
        """What the teacher is given to write a self-edit."""
        ...

    def self_edit_schema(self, context: Context, *, style: str, recipe: LoraRecipe) -> str:
        """JSON schema that self-edits to train by the recipe are held to, where the teacher's engine can; empty if they
        are free text."""
        ...

    def fault(self, context: Context, self_edit: str, *, recipe: LoraRecipe) -> str:
        """Why a self-edit cannot be used to train by the recipe; empty if it can. One that cannot earns the lowest
        reward, 0.

        May take a while, so it is not asked while a transaction is open; `examples` neither.
        """
        ...

    def baseline(self, name: str, context: Context, *, seed: int, recipe: LoraRecipe) -> str:
        """A self-edit of one of the baselines. Takes no time. Raises KeyError for another name."""
        ...

    def examples(self, context: Context, self_edit: str, *, seed: int) -> list[Example]:
        """What the student trains on. A blank self-edit leaves the context alone; no other has a fault.

        Follows from these, the domain's version and nothing else; not from the context's questions.
        """
        ...

    def recipe(self, self_edit: str, recipe: LoraRecipe) -> LoraRecipe:
        """How the student trains on it: as the plan says, but for what the self-edit decides. One with a fault decides
        nothing."""
        ...

    def question_prompt(self, context: Context) -> str:
        """What the teacher is given to write questions about the context."""
        ...

    def read_questions(self, text: str) -> list[Question]:
        """The questions in what it wrote; those that cannot be read are left out."""
        ...

    # --- answers ------------------------------------------------------------------------------------------------------

    def asks(self, context: Context) -> Sequence[Ask]:
        """What the student is asked. A question may be asked in several ways; its gold answer is to the first."""
        ...

    def answer(self, context: Context, question: int, texts: Sequence[str]) -> str:
        """The answer to a question of the context, from what the student wrote to its asks, in their order."""
        ...

    def grade(self, question: Question, answer: str) -> Mapping[str, float]:
        """Grades of an answer by grader's name, each in [0, 1]."""
        ...

    @property
    def graders(self) -> Sequence[str]:
        """`name/version` of every grader that `grade` applies."""
        ...

    def score(self, reward: str, grades: Sequence[float]) -> float:
        """What the questions' grades are worth together."""
        ...
