"""What users bring: three shapes of data sets, and what is said of those that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rookery.datasets import load_dataset, load_questions
from rookery.errors import BadFile

GOOD = {"title": "T", "context": "P", "questions": [{"question": "Q?", "answer": "A"}]}


def test_squad_shape(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "title": "U"}]))
    contexts = load_dataset(path)
    assert [c.title for c in contexts] == ["T", "U"]
    assert contexts[0].passage == "P"
    assert contexts[0].questions[0].answer == "A"


def test_jsonl_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD) + "\n")
    assert len(load_dataset(path)) == 2


def test_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "harbour_rules.txt").write_text(" Boats wait. \n")
    (tmp_path / "harbour_rules.questions.json").write_text(json.dumps(GOOD["questions"]))
    (tmp_path / "b.txt").write_text("B")
    first, second = load_dataset(tmp_path)
    assert (first.title, first.passage, len(first.questions)) == ("b", "B", 0)
    assert (second.title, second.passage, second.questions[0].question) == ("harbour rules", "Boats wait.", "Q?")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "not JSON"),
        ('{"title": "T"}', "'context' is missing"),
        ('{"title": "", "context": "P"}', "'title' is missing"),
        ('{"title": "T", "context": "P", "questions": {}}', "'questions' is not a list"),
        ('{"title": "T", "context": "P", "questions": [{"question": "Q?"}]}', "a question is an object"),
        ("[1]", "expected an object"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), "", line, json.dumps(GOOD)]))
    with pytest.raises(BadFile, match=said) as caught:
        load_dataset(path)
    assert caught.value.metadata["line"] == "3"
    assert "line 3" in caught.value.message


def test_a_malformed_item_of_a_list_is_named(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps([GOOD, {"title": "T"}]))
    with pytest.raises(BadFile) as caught:
        load_dataset(path)
    assert caught.value.metadata["item"] == "1"


@pytest.mark.parametrize("name", ["nothing.json", "nothing.jsonl", "data.csv"])
def test_files_that_are_not_there_or_no_data_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadFile, match=name):
        load_dataset(tmp_path / name)


def test_an_empty_data_set_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(BadFile, match="no contexts"):
        load_dataset(empty)
    with pytest.raises(BadFile, match="not UTF-8"):
        load_dataset(binary)


def test_questions_must_be_a_list(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text('{"question": "Q?", "answer": "A"}')
    with pytest.raises(BadFile, match="list of questions"):
        load_questions(path)
