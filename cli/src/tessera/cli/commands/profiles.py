"""`tessera profile run | show | compare | export`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tessera.cli import compare, views
from tessera.cli.connection import DomainOption, EndpointOption, StateOption, connect
from tessera.cli.output import Format, OutputOption, exit_codes, mebibytes, note, show
from tessera.domain.errors import FailedPrecondition, InvalidInput

profile = typer.Typer(no_args_is_help=True, help="Measure variants and look at the figures.")

ModelsArgument = Annotated[list[str], typer.Argument(help="models or aliases")]


class ExportFormat(StrEnum):
    CSV = "csv"
    JSON = "json"


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
                rows = ", ".join(f"b{row.batch} t{row.threads} c{row.concurrency} {row.p50_ms:.2f} ms" for row in event.profile.rows)
                note(f"{views.key_text(event.profile.variant)}: {rows}")
            elif sys.stderr.isatty():
                note(f"{event.fraction:4.0%} {event.message}")


@profile.command("show")
def show_profile(
    model: Annotated[str, typer.Argument(help="a model or an alias")],
    html: Annotated[Path | None, typer.Option("--html", help="write a report for a browser into this file instead")] = None,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """What was measured, by variant and profile class: rows, fitted lines, load cost by stage, cost per request."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        found = [views.profile(each) for each in client.profiles(model)]
        if html is not None:
            from tessera.cli.report import report

            if not found:
                raise FailedPrecondition(f"{model} has no profile: run tessera profile run {model}")
            _write(html, report(found, f"Profiles of {model}"))
            note(f"written: {html}")
        elif output is not Format.TABLE:
            show(found, output, name=lambda item: item["variant"])
        else:
            _tell(found)


def _tell(found: list[dict[str, Any]]) -> None:
    """The tables, each over all profiles, so that variants can be compared line by line."""
    for columns, rows in (
        (("variant", "class", "accuracy", "of", "usd_per_hour", "usd_per_1000", "offered"), [_head(each) for each in found]),
        ((), [_row(each, row) for each in found for row in each["latency"]]),
        ((), [_line(each, fit) for each in found for fit in each["fits"]]),
        ((), [_load(each, cost) for each in found for cost in each["load"]]),
    ):
        show(None, Format.TABLE, rows=rows, columns=columns)


def _place(each: dict[str, Any]) -> dict[str, Any]:
    return {"variant": each["variant"], "class": each["profile_class"]}


def _head(each: dict[str, Any]) -> dict[str, Any]:
    cost = None if each["usd_per_1000"] is None else f"{each['usd_per_1000']:.3g}"
    offered = f"no: {each['withheld']}" if each["withheld"] else "yes"
    return {**_place(each), **each, "of": each["accuracy_source"], "usd_per_1000": cost, "offered": offered}


def _row(each: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {
        **_place(each),
        "batch": row["batch"],
        "threads": row["threads"],
        "at a time": row["concurrency"],
        "p50_ms": row["p50_ms"],
        "p99_ms": row["p99_ms"],
        "spread": f"{row['spread']:.1%}",
        "items_per_s": row["items_per_s"],
        "repeats": row["repeats"],
        "private": mebibytes(row["peak_private_bytes"]),
    }


def _line(each: dict[str, Any], fit: dict[str, Any]) -> dict[str, Any]:
    return {
        **_place(each),
        "threads": fit["threads"],
        "at a time": fit["concurrency"],
        "ms per item": fit["slope_ms"],
        "+ ms": fit["intercept_ms"],
        "error": None if fit["error"] is None else f"{fit['error']:.1%}",
        "saturation_items_per_s": fit["saturation_items_per_s"],
    }


def _load(each: dict[str, Any], cost: dict[str, Any]) -> dict[str, Any]:
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in cost["ms"].items() if stage != "total")
    total, private = cost["ms"]["total"], mebibytes(cost["peak_private_bytes"])
    return {**_place(each), "start_path": cost["start_path"], "load_ms": total, "stages": stages, "private": private}


@profile.command("compare")
def compare_profiles(
    models: ModelsArgument,
    objective: Annotated[list[str] | None, typer.Option("--objective", help="METRIC or METRIC=WEIGHT")] = None,
    constraint: Annotated[list[str] | None, typer.Option("--constraint", help="METRIC:min=NUMBER or METRIC:max=NUMBER")] = None,
    config_file: Annotated[Path | None, typer.Option("--config-file", "-f", help="YAML with objectives and constraints")] = None,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """The best measured configuration of each variant under constraints, ranked by objectives, in the words of Triton's Model Analyzer.

    Exit code 1 when none meets the constraints."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        wish = _wish(config_file, objective or [], constraint or [])
        found = [views.profile(each) for model in models for each in client.profiles(model)]
        ranked = compare.rank(compare.candidates(found), wish)
        data = [compare.plain(each) for each in ranked]
        asked = [metric for metric in compare.METRICS if metric in wish.objectives or metric in wish.constraints]
        columns = ("variant", "profile_class", "batch", "threads", "concurrency", "score", *asked, "reason")
        show(data, output, columns=columns, name=lambda item: item["variant"])
        if not any(not each.reason for each in ranked):
            raise FailedPrecondition(
                "no configuration meets the constraints" if ranked else f"nothing is profiled of {', '.join(models)}: tessera profile run"
            )


def _wish(config_file: Path | None, objectives: Iterable[str], constraints: Iterable[str]) -> compare.Wish:
    """What the command line says beats what the file says, metric by metric."""
    read: dict[str, Any] = {}
    if config_file is not None:
        import yaml

        try:
            read = yaml.safe_load(config_file.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidInput("--config-file", str(config_file), " ".join(str(error).split())) from error
        if not isinstance(read, dict) or not set(read) <= {"objectives", "constraints"}:
            raise InvalidInput("--config-file", str(config_file), "must have objectives and constraints, and nothing else")
    wanted = compare.wish_of(read.get("objectives"), read.get("constraints"))
    said = dict(compare.parse_objective(text) for text in objectives)
    limits = {metric: dict(bounds) for metric, bounds in wanted.constraints.items()}
    for metric, bound, limit in map(compare.parse_constraint, constraints):
        limits.setdefault(metric, {})[bound] = limit
    stated = dict(wanted.objectives) if read.get("objectives") else {}
    return compare.wish_of({**stated, **said}, limits)


@profile.command("export")
def export_profiles(
    models: ModelsArgument,
    form: Annotated[ExportFormat, typer.Option("--format", help="csv has a line for each row, json all that is known")] = ExportFormat.JSON,
    to: Annotated[Path | None, typer.Option("--to", help="into this file (default: standard output)")] = None,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
) -> None:
    """Every measured row, for other programs."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        found = [views.profile(each) for model in models for each in client.profiles(model)]
        text = json.dumps(found, indent=2) + "\n" if form is ExportFormat.JSON else _csv(found)
        if to is None:
            sys.stdout.write(text)
        else:
            _write(to, text)
            note(f"written: {to}")


def _csv(found: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    keys = ("variant", "profile_class", "accuracy", "accuracy_source", "usd_per_hour")
    writer = csv.DictWriter(text, [*keys, *views.ROW_KEYS], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**{key: each[key] for key in keys}, **row} for each in found for row in each["latency"])
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    """Raises: InvalidInput: it cannot be written."""
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidInput("file", str(path), error.strerror or str(error)) from error


def register(app: typer.Typer) -> None:
    app.add_typer(profile, name="profile")
