"""How the CLI prints: `-o table|json|yaml|name` for each read; errors and progress on stderr; exit codes.

JSON field names are the stable interface (docs/cli.md); tables may change.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer

from tessera.domain.errors import DeadlineExceeded, InvalidInput, TesseraError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TIMED_OUT = 3

Row = Mapping[str, Any]


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


OutputOption = Annotated[Format, typer.Option("--output", "-o", help="how to print the answer")]


def show(
    data: Any, output: Format, *, rows: Sequence[Row] | None = None, columns: Sequence[str] = (), name: Callable[[Any], str] | None = None
) -> None:
    """Prints `data` (plain values). For tables: `rows` (default: `data` when it is a list) by `columns`; for names: `name(item)`."""
    if output is Format.JSON:
        print(json.dumps(data, indent=2))
    elif output is Format.YAML:
        import yaml

        print(yaml.safe_dump(data, sort_keys=False), end="")
    elif output is Format.NAME:
        for item in data if isinstance(data, list) else [data]:
            print(name(item) if name else item.get("name", item.get("id", "")))
    else:
        _table(rows if rows is not None else (data if isinstance(data, list) else [data]), columns)


def _table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    names = list(columns) or (list(rows[0]) if rows else [])
    for column in names:
        number = bool(rows) and all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column.upper(), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(text(row.get(column)) for column in names))
    # A pipe has no width: never cut what a script reads.
    Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table)


def text(value: Any) -> str:
    """A cell: floats short, lists joined, nothing as a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value) or "-"
    return str(value)


def mebibytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**17 else f"{count / 2**10:.1f} KiB"


def note(message: str) -> None:
    """A line for people, on stderr."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns domain errors into one line on stderr and the exit code that they mean."""
    try:
        yield
    except DeadlineExceeded as error:
        note(f"error: {error}")
        raise typer.Exit(EXIT_TIMED_OUT) from None
    except InvalidInput as error:
        note(f"error: {error}")
        raise typer.Exit(EXIT_USAGE) from None
    except TesseraError as error:
        note(f"error: {error}")
        raise typer.Exit(EXIT_FAILED) from None
