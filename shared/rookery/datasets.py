"""Reading what a user has: SQuAD files, JSONL, folders of text. Every error names the file and the line or item."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rookery.errors import BadFile
from rookery.v1.context_pb2 import Context, Question


def load_dataset(path: Path) -> list[Context]:
    """The contexts in a file or folder.

    - `.json`: a list of {"title", "context", "questions": [{"question", "answer"}]}, as SEAL's squad_val.json is;
    - `.jsonl`: one such object a line;
    - a folder: every `.txt` file is a passage, titled by its name; `NAME.questions.json` beside it holds its questions.

    Raises BadFile with `file`, and `line` or `item`.
    """
    if path.is_dir():
        contexts = [_from_text_file(text) for text in sorted(path.glob("*.txt"))]
    elif path.suffix == ".jsonl":
        contexts = list(_from_lines(path))
    elif path.suffix == ".json":
        contexts = list(_from_list(path))
    else:
        raise BadFile(f"{path} is not a .json file, a .jsonl file or a folder of .txt files", file=str(path))
    if not contexts:
        raise BadFile(f"{path} has no contexts", file=str(path))
    return contexts


def holds_tasks(path: Path) -> bool:
    """Whether a file is a JSON object, as few-shot tasks are, and no list of texts."""
    return path.suffix == ".json" and read_text(path).lstrip().startswith("{")


def load_questions(path: Path) -> list[Question]:
    """A JSON list of {"question", "answer"}. Raises BadFile with `item`."""
    content = _parse(path, read_text(path), where={})
    if not isinstance(content, list):
        raise BadFile(f"{path}: expected a list of questions", file=str(path))
    return [_question(path, entry, where={"item": str(i)}) for i, entry in enumerate(content)]


def load_lines(path: Path) -> list[str]:
    """The texts in a file, one a line; blank lines are left out. Raises BadFile if there are none."""
    lines = [line for raw in read_text(path).splitlines() if (line := raw.strip())]
    if not lines:
        raise BadFile(f"{path} has no lines", file=str(path))
    return lines


def read_text(path: Path) -> str:
    """Raises BadFile if it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise BadFile(f"{path} is not UTF-8 at byte {error.start}", file=str(path)) from None


def _from_text_file(path: Path) -> Context:
    title = path.stem.replace("_", " ")
    questions = path.with_suffix(".questions.json")
    asked = load_questions(questions) if questions.exists() else []
    return Context(title=title, passage=read_text(path).strip(), questions=asked)


def _from_lines(path: Path) -> Iterable[Context]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            where = {"line": str(number)}
            yield _context(path, _parse(path, line, where=where), where=where)


def _from_list(path: Path) -> Iterable[Context]:
    content = _parse(path, read_text(path), where={})
    if not isinstance(content, list):
        raise BadFile(f"{path}: expected a list of contexts, as in squad_val.json", file=str(path))
    for number, entry in enumerate(content):
        yield _context(path, entry, where={"item": str(number)})


def _parse(path: Path, text: str, *, where: dict[str, str]) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = where or {"line": str(error.lineno)}
        raise BadFile(f"{_place(path, line)}: not JSON: {error.msg}", file=str(path), **line) from None


def _context(path: Path, entry: Any, *, where: dict[str, str]) -> Context:
    if not isinstance(entry, dict):
        raise BadFile(f"{_place(path, where)}: expected an object", file=str(path), **where)
    for field in ("title", "context"):
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            raise BadFile(f"{_place(path, where)}: {field!r} is missing, empty or not a text", file=str(path), **where)
    questions = entry.get("questions", [])
    if not isinstance(questions, list):
        raise BadFile(f"{_place(path, where)}: 'questions' is not a list", file=str(path), **where)
    return Context(
        title=entry["title"],
        passage=entry["context"],
        questions=[_question(path, question, where=where) for question in questions],
    )


def _question(path: Path, entry: Any, *, where: dict[str, str]) -> Question:
    valid = isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("question", "answer"))
    if not valid:
        message = f"{_place(path, where)}: a question is an object with the texts 'question' and 'answer'"
        raise BadFile(message, file=str(path), **where)
    return Question(question=entry["question"], answer=entry["answer"])


def _place(path: Path, where: dict[str, str]) -> str:
    return ", ".join([str(path), *(f"{kind} {number}" for kind, number in where.items())])
