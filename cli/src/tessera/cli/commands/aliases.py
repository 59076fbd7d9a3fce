"""`tessera model alias | promote | rollback`."""

from __future__ import annotations

from typing import Annotated

import typer

from tessera.cli import views
from tessera.cli.commands.models import model, model_or_version
from tessera.cli.connection import DomainOption, EndpointOption, StateOption, connect
from tessera.cli.output import Format, OutputOption, exit_codes, note, show
from tessera.domain.errors import InvalidInput


def _version(target: str) -> tuple[str, int | None]:
    return model_or_version("target", target, "an alias stands for a model or a version of it")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def set_alias(
    alias: Annotated[str, typer.Argument(help="the other name")],
    target: Annotated[str | None, typer.Argument(help="MODEL (whichever version of it answers) or MODEL@VERSION")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="remove the alias")] = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
) -> None:
    """Point an alias at a model or a version, whatever it names now; it moves atomically."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        if delete:
            client.delete_alias(alias)
            note(f"removed alias {alias}")
            return
        if target is None:
            raise InvalidInput("target", None, "is missing: MODEL or MODEL@VERSION")
        client.set_alias(alias, *_version(target))
        note(f"{alias} now means {target}")


def promote(
    target: Annotated[str, typer.Argument(help="MODEL@VERSION, or MODEL for what is its newest version now")],
    alias: Annotated[str, typer.Argument(help="the alias that shall mean it")],
    allow_loss: Annotated[float | None, typer.Option("--allow-loss", help="what its score may be lower by, 0 to 1 (0)")] = None,
    allow_slower: Annotated[float | None, typer.Option("--allow-slower", help="the share by which it may be slower (0.1)")] = None,
    allow_costlier: Annotated[
        float | None, typer.Option("--allow-costlier", help="the share by which a request may cost more (0.1)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="promote it whatever the comparison says")] = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """Point an alias at a version, unless that is worse than the one it means now."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        done = client.promote(
            alias,
            *_version(target),
            allow_loss=allow_loss,
            allow_slower=allow_slower,
            allow_costlier=allow_costlier,
            force=force,
        )
        meant = f"{done.alias.model}@{done.alias.version}"
        note(f"{alias} means {meant} already; nothing changed" if done.unchanged else f"{alias} now means {meant}: {done.alias.reason}")
        compared = [views.comparison(each) for each in done.comparisons]
        show(
            {"alias": views.alias(done.alias), "unchanged": done.unchanged, "comparisons": compared},
            output,
            rows=[{**each, "current": _figure(each["current"]), "candidate": _figure(each["candidate"])} for each in compared],
            columns=("measure", "on", "current", "candidate", "words"),
            name=lambda _: meant,
        )


def roll_back(
    alias: Annotated[str, typer.Argument(help="the alias")],
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
) -> None:
    """Point an alias at what it meant before; once more, at what it meant before that."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        now = client.roll_back(alias)
        note(f"{alias} now means {now.model}@{now.version}: {now.reason}")


def register(app: typer.Typer) -> None:
    model.command("alias")(set_alias)
    model.command("promote")(promote)
    model.command("rollback")(roll_back)
