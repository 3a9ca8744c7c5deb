"""The root of the command, and the one place where its errors become messages."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, NoReturn

import grpc
import typer
from rich.console import Console
from rich.markup import escape

from rookery.cli import adapt, adapters, models, runs, store, up
from rookery.cli.options import SERVER_VARIABLE
from rookery.cli.quickstart import quickstart
from rookery.cli.quickstart_few_shot import quickstart_few_shot
from rookery.errors import RookeryError

app = typer.Typer(
    name="rookery",
    help="Self-adapting language models: send a text, get back a LoRA adapter that knows it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("up")(up.up)
app.command("quickstart")(quickstart)
app.command("quickstart-few-shot")(quickstart_few_shot)
app.command("adapt")(adapt.adapt)
app.add_typer(runs.app, name="run")
app.add_typer(adapters.app, name="adapters")
app.add_typer(models.app, name="models")
app.add_typer(store.app, name="store")


@app.callback()
def root(
    context: typer.Context,
    server: Annotated[
        str, typer.Option(help="The coordinator, for commands that ask one; also after their name.", show_default=False)
    ] = "",
) -> None:
    if server and context.invoked_subcommand in ("up", "quickstart", "quickstart-few-shot"):
        raise typer.BadParameter(f"`{context.invoked_subcommand}` starts a coordinator itself, at --address")
    if server:
        os.environ[SERVER_VARIABLE] = server  # where their own option looks if it is not given


def main() -> None:
    """Run the command. An error of ours is a message and exit code 1, never a traceback."""
    try:
        app()
    except RookeryError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: RookeryError) -> NoReturn:
    if "--json" in sys.argv:
        content = {
            "code": error.code.name,
            "reason": error.reason,
            "message": error.message,
            "metadata": error.metadata,
        }
        print(json.dumps({"error": content}))
    else:
        console = Console(stderr=True)
        message = f"[bold red]error:[/] {escape(error.message)} [dim]({error.reason})[/]"
        console.print(message, highlight=False, soft_wrap=True)
        if error.code is grpc.StatusCode.UNAVAILABLE:
            console.print("Is a server running? `rookery up` starts one on this machine; --server names another.")
    sys.exit(1)


if __name__ == "__main__":
    main()
