"""The rule that turns a self-edit into training sequences: research on the reference, case by case."""

from __future__ import annotations

from rookery_shared.domains.knowledge import Knowledge, training_sequences
from rookery_shared.types import Context


def sequences(self_edit: str, *, split_newlines: bool = True) -> list[str]:
    found = training_sequences(title="T", passage=" P\n", self_edit=self_edit, split_newlines=split_newlines)
    assert found[-1] == "T\nP", "the passage always comes last, stripped, under its title"
    assert all(sequence.startswith("T\n") for sequence in found)
    return [sequence.removeprefix("T\n") for sequence in found[:-1]]


def test_every_line_is_a_sequence_with_its_number() -> None:
    assert sequences("1. One.\n\n  2. Two.  \n- three") == ["1. One.", "2. Two.", "- three"]


def test_a_preamble_before_the_list_is_dropped() -> None:
    assert sequences("Here is the list:\n1. One.\n2. Two.") == ["1. One.", "2. Two."]
    assert sequences("Implications:\n2. Two.") == ["Implications:", "2. Two."], "only if the list starts with 1."


def test_rules_separate_parts() -> None:
    assert sequences("One.\n---\nTwo.\n------\n\n") == ["One.", "Two."]
    assert sequences("One.\nstill one\n---\nTwo.", split_newlines=False) == ["One.\nstill one", "Two."]


def test_question_answer_pairs_stay_together() -> None:
    text = "Who?\nAnswer: A\nQuestion 2: Where?\nAnswer : B\n---\nmore"
    assert sequences(text) == ["Question 1: Who?\nAnswer: A", "Question 2: Where?\nAnswer : B\n---\nmore"]


def test_question_without_answers_is_lines() -> None:
    assert sequences("Question 1: Who?\nNobody knows.") == ["Question 1: Who?", "Nobody knows."]


def test_a_blank_self_edit_leaves_the_passage_alone() -> None:
    assert sequences(" \n ") == []


def test_nothing_but_rules_is_one_part_as_in_the_reference() -> None:
    assert sequences("---\n---") == ["---", "---"]


def test_without_splitting_a_blank_self_edit_is_a_title_only_sequence() -> None:
    assert sequences("", split_newlines=False) == [""], "as in the reference"


def test_examples_have_the_loss_on_all_of_them() -> None:
    examples = Knowledge().examples(Context(title="T", passage="P"), "1. One.", seed=0)
    assert [(e.prompt, e.completion, e.end) for e in examples] == [("", "T\n1. One.", False), ("", "T\nP", False)]


def test_prompts_end_where_the_model_goes_on() -> None:
    domain, context = Knowledge(), Context(title="T", passage="P")
    endings = {
        "implications": "Implications:\n",
        "implications-long": "Implications:\n",
        "implications-very-long": "Implications:\n",
        "rewrite": "Rewritten passages:\n",
        "self-qa": "Question 1: ",
    }
    assert list(domain.styles) == list(endings)
    for style, ending in endings.items():
        prompt = domain.self_edit_prompt(context, style=style)
        assert prompt.endswith(f"Passage:\nT\nP\n\n{ending}")


def test_questions_are_read_from_what_the_teacher_wrote() -> None:
    text = (
        "Where is it?\nAnswer: Here.\n"
        "Question 2: broken\n"
        "Question 3: When  was\nit?\nAnswer:  1999 \n"
        "Question 4: Where is it?\nAnswer: again"
    )
    found = Knowledge().read_questions(text)
    assert [(q.question, q.answer) for q in found] == [("Where is it?", "Here."), ("When was it?", "1999")]
    assert Knowledge().read_questions("no questions at all") == []
    assert Knowledge().read_questions("Question 2: When?\nAnswer: \n1900") == [], "a blank answer is none"
