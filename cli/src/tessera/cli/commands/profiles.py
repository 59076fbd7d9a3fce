"""`tessera profile run | show`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tessera.cli import views
from tessera.cli.connection import DomainOption, EndpointOption, StateOption, connect
from tessera.cli.output import Format, OutputOption, exit_codes, mebibytes, note, show

profile = typer.Typer(no_args_is_help=True, help="Measure variants and look at the figures.")


@profile.command("run")
def run_profile(
    model: Annotated[str, typer.Argument(help="a model or an alias")],
    variant: Annotated[str, typer.Option("--variant", help="only this one")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="batch 1 and the node's own thread count only")] = False,
    again: Annotated[bool, typer.Option("--again", help="measure what is measured already, too")] = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
) -> None:
    """Measure load cost and latency of a model's variants. Ctrl-C stops; what is done stays, and the next run goes on there."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        for event in client.run_profile(model, variant=variant, quick=quick, again=again):
            if event.HasField("profile"):
                rows = ", ".join(f"b{row.batch} t{row.threads} {row.p50_ms:.2f} ms" for row in event.profile.rows)
                note(f"{views.key_text(event.profile.variant)}: {rows}")
            elif sys.stderr.isatty():
                note(f"{event.fraction:4.0%} {event.message}")


@profile.command("show")
def show_profile(
    model: Annotated[str, typer.Argument(help="a model or an alias")],
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """What was measured, by variant and profile class."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        found = [views.profile(each) for each in client.profiles(model)]
        rows = [
            {
                "variant": each["variant"],
                "class": each["profile_class"],
                "batch": row["batch"],
                "threads": row["threads"],
                "p50_ms": row["p50_ms"],
                "p99_ms": row["p99_ms"],
                "repeats": row["repeats"],
                "private": mebibytes(row["peak_private_bytes"]),
                "load_ms": ", ".join(f"{cost['start_path']} {cost['ms']['total']:.1f}" for cost in each["load"]),
            }
            for each in found
            for row in each["latency"]
        ]
        show(found, output, rows=rows, name=lambda item: item["variant"])


def register(app: typer.Typer) -> None:
    app.add_typer(profile, name="profile")
