"""Options that many commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

SERVER_VARIABLE = "ROOKERY_SERVER"
Server = Annotated[
    str, typer.Option(envvar=SERVER_VARIABLE, help="The coordinator, host:port, or https://host over TLS.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Option(help="Where all state is kept.")]
Seed = Annotated[int, typer.Option(help="Every random draw follows from it.")]
Rank = Annotated[Optional[int], typer.Option(help="Rank of the student's adapters; alpha is twice that.")]  # noqa: UP045  # typer reads it
Epochs = Annotated[Optional[int], typer.Option(help="Passes over the training sequences.")]  # noqa: UP045
Rate = Annotated[Optional[float], typer.Option(help="Learning rate of the student.")]  # noqa: UP045
Targets = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="Layer to adapt, such as q_proj; repeat for more, or all-linear."),
]
BatchSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Sequences in a batch of the student; 0 puts all into one."),
]
MaxSteps = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Optimiser steps of the student; a self-edit that asks for more is refused."),
]

DEFAULT_SERVER = "localhost:7070"
DEFAULT_FOLDER = Path("rookery-data")
