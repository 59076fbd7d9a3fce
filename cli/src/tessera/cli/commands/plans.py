"""`tessera plan show | costs`."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli.connection import DomainOption, EndpointOption, StateOption, connect
from tessera.cli.output import Format, OutputOption, exit_codes, mebibytes, note, show

if TYPE_CHECKING:
    from tessera.sdk import types

plan = typer.Typer(no_args_is_help=True, help="How instances become others.")

_SUM_COLUMNS = ("operator", "kind", "steps", "new", "cost_ms")
_COST_COLUMNS = ("class", "operator", "kind", "step_ms", "ms_per_mib", "ms_per_changed_mib", "error")
_STEP_COLUMNS = ("operator", "kind", "source", "target", "new", "cost_ms")


@plan.command("show")
def show_plan(
    source: Annotated[str, typer.Argument(help="MODEL, MODEL@VERSION or MODEL@VERSION/VARIANT; its aten-fp32 where no variant is named")],
    target: Annotated[str, typer.Argument(help="what it becomes, named in the same way")],
    planner: Annotated[
        str, typer.Option("--planner", help="tessera, group (published) or munkres (the optimum); else the one whose plans are carried out")
    ] = "",
    profile_class: Annotated[str, typer.Option("--class", help="whose costs; else those that were measured last")] = "",
    steps: Annotated[bool, typer.Option("--steps", help="every step, in its order, instead of sums")] = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """Print the meta-operators that turn an instance of one model into one of another, with their costs."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        data = _plain(client.plan(source, target, planner, profile_class))
        if output is Format.TABLE:
            note(
                f"{data['source']} becomes {data['target']} by planner {data['planner']}: {data['kept']} of {data['source_operations']} "
                f"operations stay, {data['target_operations']} in the end; {data['expected_ms']:.2f} ms, "
                f"{data['base_ms']:.2f} of them for any; {_whose(data['costs'])}"
            )
        rows = [{**step, "new": mebibytes(step["new_bytes"])} for step in data["steps"]] if steps else _sums(data["steps"])
        show(data, output, rows=rows, columns=_STEP_COLUMNS if steps else _SUM_COLUMNS, name=lambda item: item["planner"])


def _plain(found: types.ShowPlanResponse) -> dict[str, Any]:
    """As JSON (docs/cli.md)."""
    return {
        "source": found.source,
        "target": found.target,
        "planner": found.planner,
        "source_operations": found.source_operations,
        "target_operations": found.target_operations,
        "kept": found.kept,
        "base_ms": found.base_ms,
        "expected_ms": round(found.expected_ms, 4),
        "costs": _measured(found) if found.profile_class else None,
        "steps": [
            {
                "operator": step.operator,
                "kind": step.kind,
                "source": step.source if step.HasField("source") else None,
                "target": step.target if step.HasField("target") else None,
                "new_bytes": step.new_bytes,
                "cost_ms": round(step.cost_ms, 6),
            }
            for step in found.steps
        ],
    }


def _measured(found: types.ShowPlanResponse | types.MetaCosts) -> dict[str, Any]:
    return {
        "profile_class": found.profile_class,
        "error": round(found.error, 4),
        "observations": found.observations,
        "measured_unix_s": found.measured_unix_s,
    }


def _whose(costs: dict[str, Any] | None) -> str:
    if costs is None:
        return "assumed: no node class was measured (tessera profile run)"
    return f"as measured on {costs['profile_class']} in {costs['observations']} transformations, error {costs['error']:.0%}"


@plan.command("costs")
def show_costs(
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """What meta-operators take on each profile class where `tessera profile run` has measured them."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        data = [_costs(found) for found in client.meta_costs()]
        rows = [{"class": each["profile_class"], **line, "error": f"{each['error']:.0%}"} for each in data for line in each["lines"]]
        show(data, output, rows=rows, columns=_COST_COLUMNS, name=lambda item: item["profile_class"])


def _costs(found: types.MetaCosts) -> dict[str, Any]:
    """As JSON. "": any operation, or any transformation."""
    base = {"operator": "", "kind": "", "step_ms": round(found.base_ms, 6), "ms_per_mib": 0.0, "ms_per_changed_mib": 0.0}
    lines = [
        {
            "operator": line.operator,
            "kind": line.kind,
            "step_ms": round(line.fixed_ms, 6),
            "ms_per_mib": round(line.per_mib_ms, 6),
            "ms_per_changed_mib": round(line.per_changed_mib_ms, 6),
        }
        for line in found.lines
    ]
    return {**_measured(found), "dialect": found.dialect, "lines": [base, *lines]}


def _sums(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By operator and kind, in the order in which they come first."""
    found: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for step in steps:
        found[step["operator"], step["kind"]].append(step)
    return [
        {
            "operator": operator,
            "kind": kind,
            "steps": len(some),
            "new": mebibytes(sum(step["new_bytes"] for step in some)),
            "cost_ms": round(sum(step["cost_ms"] for step in some), 4),
        }
        for (operator, kind), some in found.items()
    ]


def register(app: typer.Typer) -> None:
    app.add_typer(plan, name="plan")
