"""`tessera plan show`."""

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
_STEP_COLUMNS = ("operator", "kind", "source", "target", "new", "cost_ms")


@plan.command("show")
def show_plan(
    source: Annotated[str, typer.Argument(help="MODEL, MODEL@VERSION or MODEL@VERSION/VARIANT; its aten-fp32 where no variant is named")],
    target: Annotated[str, typer.Argument(help="what it becomes, named in the same way")],
    planner: Annotated[str, typer.Option("--planner", help="tessera, group (published) or munkres (the optimum)")] = "",
    steps: Annotated[bool, typer.Option("--steps", help="every step, in its order, instead of sums")] = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """Print the meta-operators that turn an instance of one model into one of another, with their costs."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        data = _plain(client.plan(source, target, planner))
        if output is Format.TABLE:
            note(
                f"{data['source']} becomes {data['target']} by planner {data['planner']}: {data['kept']} of {data['source_operations']} "
                f"operations stay, {data['target_operations']} in the end; {data['expected_ms']:.2f} ms, "
                f"{data['base_ms']:.2f} of them for any"
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
