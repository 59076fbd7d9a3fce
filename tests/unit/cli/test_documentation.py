"""docs/cli.md against the commands themselves: every option of each, and none that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from tessera.cli.__main__ import app

TEXT = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def leaves(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    children = getattr(command, "commands", None)
    if not children:
        yield name, command
        return
    for word, child in children.items():
        yield from leaves(child, f"{name} {word}".strip())


COMMANDS = dict(leaves(typer.main.get_command(app)))


def rows(columns: int) -> list[list[str]]:
    """The cells of each table row with that many columns."""
    found = []
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if line.startswith("| `") and len(cells) == columns:
            found.append(cells)
    return found


def own_options(command: str) -> set[str]:
    (synopsis,) = [cell for cell, _ in rows(2) if re.match(rf"`{command}[ `]", cell)]
    return set(OPTION.findall(synopsis))


def shared_options(command: str) -> set[str]:
    found: set[str] = set()
    for option, of, _ in rows(3):
        named = re.findall(r"`([a-z ]+)`", of)
        if of == "all" or (command not in named if of.startswith("all but") else command in named):
            found |= set(OPTION.findall(option))
    return found


def test_every_command_has_a_row() -> None:
    assert {match[1] for cell, _ in rows(2) if (match := re.match(r"`([a-z]+(?: [a-z]+)*)", cell))} == set(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_stands_in_the_documentation_and_no_other(command: str) -> None:
    options = [parameter for parameter in COMMANDS[command].params if parameter.param_type_name == "option"]
    real = {word for option in options for word in (*option.opts, *option.secondary_opts)} - {"--help"}
    assert own_options(command) | shared_options(command) == real


def test_inference_does_not_take_a_trust_domain_that_it_would_ignore() -> None:
    assert "--trust-domain" not in {word for parameter in COMMANDS["infer"].params for word in parameter.opts}
