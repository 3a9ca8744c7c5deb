"""Few-shot tasks from files, and what is said of files that hold none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rookery.errors import BadFile
from rookery.tasks import Pair, Task, load_tasks

TASK = {"train": [{"input": [[0, 1]], "output": [[1, 0]]}], "test": [{"input": [[2, 0]]}]}


def written(folder: Path, content: object, name: str = "swap.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_one_task_is_named_as_its_file_is(tmp_path: Path) -> None:
    expected = Task(name="swap", train=(Pair(input="0 1", output="1 0"),), test=(Pair(input="2 0"),))
    assert load_tasks(written(tmp_path, TASK)) == [expected]


def test_pairs_may_be_texts(tmp_path: Path) -> None:
    content = {"train": [{"input": "cat", "output": "tac"}], "test": [{"input": "dog", "output": "god"}]}
    [task] = load_tasks(written(tmp_path, content))
    assert task.train == (Pair(input="cat", output="tac"),)
    assert task.test == (Pair(input="dog", output="god"),)


def test_solutions_are_put_in(tmp_path: Path) -> None:
    challenges = written(tmp_path, {"a": TASK, "b": TASK})
    solutions = written(tmp_path, {"a": [[[0, 2]]], "b": [[[5]]]}, "solutions.json")
    assert [task.test[0].output for task in load_tasks(challenges, solutions)] == ["0 2", "5"]


@pytest.mark.parametrize(
    ("content", "task", "field"),
    [
        ({"a": TASK, "b": {"train": []}}, "b", "train"),
        ({"a": {**TASK, "test": "x"}}, "a", "test"),
        ({"a": {**TASK, "test": [{"output": [[1]]}]}}, "a", "test[0]"),
        ({"a": {**TASK, "test": [{"input": [[1, 2], [3]]}]}}, "a", "test[0].input"),
        ({"a": {**TASK, "test": [{"input": [[1, 11]]}]}}, "a", "test[0].input"),
        ({"a": {**TASK, "test": [{"input": " "}]}}, "a", "test[0].input"),
        ({"a": {**TASK, "train": [{"input": [[1]]}]}}, "a", "train[0].output"),
        ({"a": {**TASK, "train": [{"input": [[1]], "output": [[0] * 31]}]}}, "a", "train[0].output"),
        ({"a": 5}, "a", "train"),
    ],
)
def test_an_error_names_the_task_and_the_field(tmp_path: Path, content: object, task: str, field: str) -> None:
    with pytest.raises(BadFile) as raised:
        load_tasks(written(tmp_path, content))
    assert raised.value.metadata == {"file": str(tmp_path / "swap.json"), "task": task, "field": field}
    assert field in raised.value.message


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_file_without_tasks_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(BadFile):
        load_tasks(written(tmp_path, content))


def test_solutions_must_fit(tmp_path: Path) -> None:
    solutions = written(tmp_path, {"swap": []}, "solutions.json")
    with pytest.raises(BadFile) as raised:
        load_tasks(written(tmp_path, TASK), solutions)
    assert raised.value.metadata["field"] == "test"
