"""What a domain decides. A service asks these questions and never which domain it is talking to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rookery_shared.types import Context, Example, Question


class Domain(Protocol):
    """A kind of context: how it is taught, learned, asked and graded."""

    @property
    def name(self) -> str: ...

    @property
    def styles(self) -> Sequence[str]:
        """The prompts that it has for a teacher; the first is the default."""
        ...

    def self_edit_prompt(self, context: Context, *, style: str) -> str:
        """What the teacher is given to write a self-edit."""
        ...

    def examples(self, context: Context, self_edit: str) -> list[Example]:
        """What the student trains on. A blank self-edit leaves the context alone."""
        ...

    def question_prompt(self, context: Context) -> str:
        """What the teacher is given to write questions about the context."""
        ...

    def read_questions(self, text: str) -> list[Question]:
        """The questions in what it wrote; those that cannot be read are left out."""
        ...

    def answer_prompts(self, context: Context) -> list[str]:
        """What the student is asked, a prompt for each question; the context itself is not shown."""
        ...

    def grade(self, question: Question, answer: str) -> Mapping[str, float]:
        """Grades of an answer by grader's name, each in [0, 1]."""
        ...

    @property
    def graders(self) -> Sequence[str]:
        """`name/version` of every grader that `grade` applies."""
        ...
