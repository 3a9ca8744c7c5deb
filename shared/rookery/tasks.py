"""Reading few-shot tasks: ARC's files, and tasks of text pairs. Every error names the file, the task and the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rookery.datasets import read_text
from rookery.errors import BadFile
from rookery.grids import NotAGrid, make_grid, to_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What goes in and what comes out. A grid is its text: a line for each row, digits with spaces between them."""

    input: str
    output: str | None = None
    """None if nobody has said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    name: str
    train: tuple[Pair, ...]
    """Demonstrations, with their outputs."""
    test: tuple[Pair, ...]


def load_tasks(path: Path, solutions: Path | None = None) -> list[Task]:
    """The tasks in a JSON file, in its order.

    - One task: {"train": [{"input", "output"}], "test": [{"input"}]}, named as the file is;
    - many: {NAME: task}, as ARC's challenges are. `solutions` is {NAME: [output of each test input]}.

    An input or output is a grid, as a list of rows, or a text. Raises BadFile with `file`, `task` and `field`.
    """
    content = _read(path)
    named = {path.stem: content} if "train" in content else content
    tasks = [_task(path, name, value) for name, value in named.items()]
    if not tasks:
        raise BadFile(f"{path} has no tasks", file=str(path))
    if solutions is None:
        return tasks
    given = _read(solutions)
    return [_solved(solutions, task, given.get(task.name)) for task in tasks]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        message = f"{path}, line {error.lineno}: not JSON: {error.msg}"
        raise BadFile(message, file=str(path), line=str(error.lineno)) from None
    if not isinstance(content, dict):
        raise BadFile(f"{path}: expected an object with a task or with tasks by name", file=str(path))
    return content


def _task(path: Path, name: str, value: Any) -> Task:
    if not isinstance(value, Mapping):
        raise _bad(path, name, "train", "a task is an object with 'train' and 'test'")
    train = tuple(_pair(path, name, f"train[{i}]", pair) for i, pair in enumerate(_pairs(path, name, value, "train")))
    test = tuple(_pair(path, name, f"test[{i}]", pair) for i, pair in enumerate(_pairs(path, name, value, "test")))
    for number, pair in enumerate(train):
        if pair.output is None:
            raise _bad(path, name, f"train[{number}].output", "a demonstration needs it")
    return Task(name=name, train=train, test=test)


def _pairs(path: Path, name: str, task: Mapping[str, Any], field: str) -> list[Any]:
    pairs = task.get(field)
    if not isinstance(pairs, list) or not pairs:
        raise _bad(path, name, field, "expected a list of pairs with at least one")
    return pairs


def _pair(path: Path, name: str, field: str, pair: Any) -> Pair:
    if not isinstance(pair, Mapping) or "input" not in pair:
        raise _bad(path, name, field, "a pair is an object with 'input' and 'output'")
    output = pair.get("output")
    return Pair(
        input=_side(path, name, f"{field}.input", pair["input"]),
        output=None if output is None else _side(path, name, f"{field}.output", output),
    )


def _side(path: Path, name: str, field: str, value: Any) -> str:
    """The text of a grid, or a text as it is."""
    if isinstance(value, str):
        if not value.strip():
            raise _bad(path, name, field, "it is blank")
        return value
    try:
        return to_text(make_grid(value))
    except NotAGrid as error:
        raise _bad(path, name, field, f"neither a text nor a grid: {error}") from None


def _solved(path: Path, task: Task, outputs: Any) -> Task:
    if not isinstance(outputs, list) or len(outputs) != len(task.test):
        raise _bad(path, task.name, "test", f"expected a list of {len(task.test)} outputs")
    test = tuple(
        replace(pair, output=_side(path, task.name, f"test[{i}].output", output))
        for i, (pair, output) in enumerate(zip(task.test, outputs, strict=True))
    )
    return replace(task, test=test)


def _bad(path: Path, task: str, field: str, what: str) -> BadFile:
    return BadFile(f"{path}, task {task}, {field}: {what}", file=str(path), task=task, field=field)
