"""`tessera status | ps | node list | explain | trace show`: what runs, and why."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from tessera.cli import views
from tessera.cli.connection import EndpointOption, StateOption, connect
from tessera.cli.objectives import AccuracyOption, CostOption, DatasetOption, LatencyOption, objectives
from tessera.cli.output import EXIT_FAILED, Format, OutputOption, exit_codes, mebibytes, show
from tessera.cli.waterfall import draw
from tessera.domain.errors import InvalidInput

VARIANT_COLUMNS = ("", "variant", "expected_ms", "latency_ms", "load_ms", "accuracy", "by", "usd_per_1000", "work_ms", "load", "reason")
INSTANCE_COLUMNS = ("", "variant", "node", "instance", "in_flight", "expected_ms", "load", "seen")
START_COLUMNS = ("", "variant", "node", "start_path", "expected_ms", "bytes_to_fetch", "reason")

_REQUEST_ID = re.compile(r"[0-9a-f]{32}")

node = typer.Typer(no_args_is_help=True, help="The nodes.")
trace = typer.Typer(no_args_is_help=True, help="Where the time of a request went.")


def status(endpoint: EndpointOption = None, state: StateOption = None, output: OutputOption = Format.TABLE) -> None:
    """The services and whether they are ready; exit code 1 when one is not."""
    with exit_codes(), connect(endpoint, state) as client:
        found = [views.service(each) for each in client.platform().services]
        show(found, output, columns=("kind", "id", "address", "ready", "detail"), name=lambda item: f"{item['kind']}/{item['id']}")
        if not all(each["ready"] for each in found):
            raise typer.Exit(EXIT_FAILED)


def ps(endpoint: EndpointOption = None, state: StateOption = None, output: OutputOption = Format.TABLE) -> None:
    """Every instance: where it runs, how it started, what it costs in memory."""
    with exit_codes(), connect(endpoint, state) as client:
        found = [
            views.instance(node.node_id, instance, {runtime.runtime_id: runtime for runtime in node.runtimes})
            for node in client.nodes()
            for instance in node.instances
        ]
        rows = [
            {
                "id": each["id"],
                "variant": f"{each['model']}@{each['version']}/{each['variant']}",
                "node": each["node"],
                "pid": each["pid"],
                "state": each["state"] + (" parked" if each["parked"] else ""),
                "load": each["load"],
                "start": each["start_path"] + (" +fetch" if each["fetched"] else ""),
                "start_ms": each["start_ms"]["total"],
                "shared": mebibytes(each["shared_bytes"]),
                "private": mebibytes(each["private_bytes"]),
                "runtime shared": mebibytes(each["runtime"].get("shared_bytes", 0)),
                "runtime private": mebibytes(each["runtime"].get("private_bytes", 0)),
                "served": each["served"],
                "queue": each["queue"],
                "per_s": each["requests_per_s"],
                "run_p50_ms": each["run_p50_ms"],
                "run_p99_ms": each["run_p99_ms"],
                "idle_s": each["idle_s"],
            }
            for each in found
        ]
        show(found, output, rows=rows)


@node.command("list")
def list_nodes(endpoint: EndpointOption = None, state: StateOption = None, output: OutputOption = Format.TABLE) -> None:
    """Nodes with their store and runtimes."""
    with exit_codes(), connect(endpoint, state) as client:
        found = [views.node(each) for each in client.nodes()]
        rows = [
            {
                "id": each["id"],
                "class": each["profile_class"],
                "cores": f"{each['cpu_cores']:.1f} of {each['cpu_count']}",
                "memory free": f"{mebibytes(each['memory_available_bytes'])} of {mebibytes(each['memory_bytes'])}",
                "pressure": each["memory_pressure"],
                "runtimes": len(each["runtimes"]),
                "instances": each["instances"],
                "load": _load_words(each),
                "store": f"{mebibytes(_sum(each, 'used_bytes'))} of {mebibytes(_sum(each, 'budget_bytes'))}",
                "pinned": mebibytes(_sum(each, "pinned_bytes")),
                "shared": mebibytes(sum(runtime["shared_bytes"] for runtime in each["runtimes"])),
                "private": mebibytes(sum(runtime["private_bytes"] for runtime in each["runtimes"])),
            }
            for each in found
        ]
        show(found, output, rows=rows)


def _load_words(node: dict[str, Any]) -> str:
    """How many of its instances are not merely active."""
    return ", ".join(f"{node[state]} {state}" for state in ("overloaded", "interfered") if node[state]) or "active"


def _sum(node: dict[str, Any], key: str) -> int:
    return sum(store[key] for store in node["stores"])


def explain(
    what: Annotated[str, typer.Argument(metavar="REQUEST-OR-MODEL", help="a reply's request_id, or a name as `infer` takes it")],
    latency_ms: LatencyOption = None,
    min_accuracy: AccuracyOption = None,
    max_cost: CostOption = None,
    dataset: DatasetOption = "",
    endpoint: EndpointOption = None,
    state: StateOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Why a request got this variant, node and start path, or where one for a model would go now, and why the others lose."""
    with exit_codes(), connect(endpoint, state) as client:
        asked = objectives(latency_ms, min_accuracy, max_cost, dataset, strict=False)
        if _REQUEST_ID.fullmatch(what):
            if asked.any:
                raise InvalidInput("objectives", None, f"request {what} had its own; they go with a MODEL")
            answer = client.explain(what)
        else:
            answer = client.explain_model(what, asked)
        data = views.explanation(answer)
        if output is not Format.TABLE:
            show(data, output, name=lambda item: item["request_id"])
            return
        _tell(data)


def _tell(data: dict[str, Any]) -> None:
    asked = f" with {data['objectives']}" if data["objectives"] else ""
    if data["request_id"]:
        _tell_outcome(data, asked)
    else:
        would = f"{data['instance']} on {data['node']}" if data["instance"] else data["outcome"] or "an instance that has to be started"
        print(f"a request for {data['model']}{asked} would go to {would}, predicted {data['predicted_ms']:.1f} ms")
    if data["objective_missed"]:
        print(f"  nothing meets the objectives: the closest misses {data['objective_missed']}")
    print(f"variants (policy {data['variant_policy']}, instances by {data['instance_policy']}):")
    show(None, Format.TABLE, rows=[_marked(option) for option in data["variants"]], columns=VARIANT_COLUMNS)
    instances = [{"variant": option["variant"], **each} for option in data["variants"] for each in option["instances"]]
    if instances:
        print("instances:")
        show(None, Format.TABLE, rows=[_marked(each) for each in instances], columns=INSTANCE_COLUMNS)
    if data["start_options"]:
        print(f"starts (policy {data['start_policy']}):")
        show(None, Format.TABLE, rows=[_marked(option) for option in data["start_options"]], columns=START_COLUMNS)


def _tell_outcome(data: dict[str, Any], asked: str) -> None:
    print(f"request {data['request_id']} for {data['model']}{asked}: {data['outcome']}")
    print(f"  answered by instance {data['instance'] or '-'} on {data['node'] or '-'}, start path {data['start_path'] or '-'}")
    predicted = f", predicted {data['predicted_ms']:.1f} ms" if data["predicted_ms"] else ""
    print(f"  took {data['actual_ms']:.1f} ms{predicted}: " + ", ".join(f"{key} {value:.1f}" for key, value in data["stages_ms"].items()))


def _marked(option: dict[str, Any]) -> dict[str, Any]:
    return {**option, "": "*" if option["chosen"] else " "}


@trace.command("show")
def show_trace(
    request_id: Annotated[str, typer.Argument(help="as the reply's request_id parameter gives it")],
    endpoint: EndpointOption = None,
    state: StateOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """The spans of a request as a waterfall."""
    with exit_codes(), connect(endpoint, state) as client:
        spans = [views.span(each) for each in client.trace(request_id).spans]
        if output is Format.TABLE:
            draw(spans)
        else:
            show(spans, output)


def register(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(ps)
    app.add_typer(node, name="node")
    app.command()(explain)
    app.add_typer(trace, name="trace")
