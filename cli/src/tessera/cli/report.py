"""Profiles as one HTML file that needs nothing else: the Pareto picture, latency over batch with the fitted lines, and the tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tessera.cli.compare import Candidate, candidates
from tessera.cli.output import mebibytes, text
from tessera.cli.pareto import front
from tessera.domain.errors import Unsupported

if TYPE_CHECKING:
    import plotly.graph_objects as plotly

Plain = Mapping[str, Any]

_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem } th, td { padding: 0.2rem 0.8rem; text-align: right }
th { border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left } p.note { color: #555 }
"""
_TEMPLATE = "plotly_white"


def report(profiles: Sequence[Plain], title: str) -> str:
    """The whole file.

    Raises:
        Unsupported: plotly is not installed.
    """
    figures = [_pareto(profiles), _lines(profiles)]
    # The library is in the file once: nothing is loaded from elsewhere when it is opened.
    charts = [figure.to_html(full_html=False, include_plotlyjs=not index) for index, figure in enumerate(figures)]
    body = "\n".join(
        [
            f"<h1>{html.escape(title)}</h1>",
            "<p class='note'>Each point is a measured row. Filled points are on the Pareto front: no other row is as fast, as accurate and "
            "as cheap. Cost is that of the share of a node that the row keeps busy.</p>",
            charts[0],
            "<p class='note'>Medians of one instance by itself, and the line latency = slope * batch + intercept through them.</p>",
            charts[1],
            *(_tables(profile) for profile in profiles),
        ]
    )
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head><body>\n{body}\n</body></html>\n"


def _figure(title: str, x_title: str, y_title: str, *, log_y: bool = False) -> plotly.Figure:
    try:
        import plotly.graph_objects as plotly
    except ImportError as error:
        raise Unsupported("the report is drawn by plotly, which is not installed: pip install 'tessera-cli[report]'") from error
    figure = plotly.Figure()
    figure.update_layout(template=_TEMPLATE, title=title, height=520, legend={"orientation": "h", "y": -0.25}, margin={"t": 60})
    figure.update_xaxes(title=x_title, type="log")
    figure.update_yaxes(title=y_title, type="log" if log_y else "linear")
    return figure


def _pareto(profiles: Sequence[Plain]) -> plotly.Figure:
    """Latency x accuracy x cost: across, up, and as colour (grey where the price is not known); the size of a point is its throughput."""
    figure = _figure("latency, accuracy and cost", "median latency of a batch (ms)", "accuracy")
    found = candidates(profiles)
    ahead = front(found)
    fastest = max((point.metrics["perf_throughput"] for point in found), default=1.0) or 1.0
    costs = [point.metrics["usd_per_1000"] for point in found if "usd_per_1000" in point.metrics]
    priced = False
    for index, name in enumerate(sorted({_name(point) for point in found})):
        mine = [(point, first) for point, first in zip(found, ahead, strict=True) if _name(point) == name]
        points, symbol = [point for point, _ in mine], _SYMBOLS[index % len(_SYMBOLS)]
        marker: dict[str, Any] = {
            "symbol": [symbol if first else f"{symbol}-open" for _, first in mine],
            "size": [8 + 22 * (point.metrics["perf_throughput"] / fastest) ** 0.5 for point in points],
            "line": {"width": 1.5},
            "color": _UNPRICED,
        }
        if all("usd_per_1000" in point.metrics for point in points):
            marker["color"] = [point.metrics["usd_per_1000"] for point in points]
            marker |= {"colorscale": "Viridis", "cmin": min(costs), "cmax": max(costs), "showscale": not priced}
            marker["colorbar"] = {"title": {"text": "USD per 1,000"}, "exponentformat": "e"}
            priced = True
        figure.add_scatter(
            x=[point.metrics["perf_latency_p50"] for point in points],
            y=[point.metrics.get("accuracy") for point in points],
            mode="markers",
            name=name,
            text=[_hover(point) for point in points],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            marker=marker,
        )
    return figure


_UNPRICED = "#999999"
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "pentagon", "star", "hexagon")


_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")


def _lines(profiles: Sequence[Plain]) -> plotly.Figure:
    figure = _figure("latency over batch", "batch", "median latency (ms)", log_y=True)
    alone = [(profile, fit) for profile in profiles for fit in profile["fits"] if fit["concurrency"] == 1]
    for index, (profile, fit) in enumerate(alone):
        rows = [row for row in profile["latency"] if (row["threads"], row["concurrency"]) == (fit["threads"], 1)]
        name = f"{profile['variant']}, {_threads(fit['threads'])}, {profile['profile_class']}"
        batches, colour = [row["batch"] for row in rows], _COLOURS[index % len(_COLOURS)]
        medians = [row["p50_ms"] for row in rows]
        figure.add_scatter(x=batches, y=medians, mode="markers", name=name, legendgroup=name, marker={"color": colour})
        if fit["slope_ms"] is not None:
            line = [fit["slope_ms"] * batch + fit["intercept_ms"] for batch in batches]
            said = f"{fit['slope_ms']:.3g} ms * batch + {fit['intercept_ms']:.3g} ms, error {fit['error']:.1%}"
            style = {"dash": "dot", "color": colour}
            figure.add_scatter(x=batches, y=line, mode="lines", name=said, legendgroup=name, line=style, showlegend=False)
    return figure


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _name(point: Candidate) -> str:
    return f"{point.variant} on {point.profile_class}"


def _hover(point: Candidate) -> str:
    place = f"batch {point.batch}, {_threads(point.threads)}, {point.concurrency} at a time"
    return "<br>".join([place, *(f"{metric} {value:.4g}" for metric, value in point.metrics.items())])


def _tables(profile: Plain) -> str:
    title = f"{profile['variant']} on {profile['profile_class']}"
    facts = [
        f"accuracy {text(profile['accuracy'])} ({profile['accuracy_source']})" if profile["accuracy"] is not None else "",
        f"{profile['usd_per_1000']:.3g} USD per 1,000 requests at {profile['usd_per_hour']:g} USD an hour"
        if profile["usd_per_1000"]
        else "",
        f"not offered: {profile['withheld']}" if profile["withheld"] else "",
        "a quick run only" if profile["quick"] else "",
    ]
    rows = _table(
        ("batch", "threads", "at a time", "p50 ms", "p99 ms", "mean ms", "spread", "items/s", "repeats", "private"),
        (
            (
                row["batch"], row["threads"], row["concurrency"], row["p50_ms"], row["p99_ms"], row["mean_ms"], f"{row['spread']:.1%}",
                row["items_per_s"], row["repeats"], mebibytes(row["peak_private_bytes"]),
            )
            for row in profile["latency"]
        ),
    )  # fmt: skip
    loads = _table(
        ("start path", "stages", "total ms", "private"),
        (
            (
                cost["start_path"],
                ", ".join(f"{stage} {ms:.1f}" for stage, ms in cost["ms"].items() if stage != "total"),
                cost["ms"]["total"],
                mebibytes(cost["peak_private_bytes"]),
            )
            for cost in profile["load"]
        ),
    )
    return f"<h2>{html.escape(title)}</h2><p>{html.escape('; '.join(fact for fact in facts if fact))}</p>{rows}{loads}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(text(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{html.escape(each)}</th>' for each in head)}</tr>{cells}</table>"
