"""One view of all processes' output, and a file for each."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")


class LogView:
    """Writes each line to `FOLDER/PROCESS.log`, and to the console if there is one."""

    def __init__(self, folder: Path, console: Console | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._console = console
        self._lock = threading.Lock()
        self._files: dict[str, IO[str]] = {}

    def __call__(self, process: str, line: str) -> None:
        with self._lock:
            if process not in self._files:
                self._files[process] = (self._folder / f"{process}.log").open("a", encoding="utf-8")
            file = self._files[process]
            file.write(line + "\n")
            file.flush()
            if self._console is not None:
                colour = _COLOURS[list(self._files).index(process) % len(_COLOURS)]
                self._console.print(Text(f"{process:>24} │ ", style=colour) + Text(line), soft_wrap=True)
