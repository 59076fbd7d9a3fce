"""How the demo prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_console = Console(highlight=False, width=None if Console().is_terminal else 150)


def heading(text: str) -> None:
    _console.print(f"\n[bold]{text}[/bold]")


def line(text: str) -> None:
    _console.print(text, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    found = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        found.add_column(column, overflow="fold")
    for row in rows:
        found.add_row(*(str(cell) for cell in row))
    _console.print(found)


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
