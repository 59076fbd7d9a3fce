"""Spans as a waterfall in the terminal."""

from __future__ import annotations

from typing import Any

WIDTH = 48
_FULL = "█"
_THIN = "▏"


def rows(spans: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """(depth, span), parents before children, siblings by start. A span whose parent is not here counts as a root."""
    known = {span["span_id"] for span in spans}
    children: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        children.setdefault(span["parent_span_id"] if span["parent_span_id"] in known else "", []).append(span)
    found: list[tuple[int, dict[str, Any]]] = []

    def visit(parent: str, depth: int) -> None:
        for span in sorted(children.get(parent, []), key=lambda each: (each["start_unix_ns"], each["end_unix_ns"])):
            found.append((depth, span))
            visit(span["span_id"], depth + 1)

    visit("", 0)
    return found


def bar(start_ns: int, end_ns: int, first_ns: int, last_ns: int) -> str:
    """`WIDTH` cells; a span that is shorter than a cell still shows as a thin one."""
    whole = max(1, last_ns - first_ns)
    left = round((start_ns - first_ns) / whole * WIDTH)
    cells = round((end_ns - start_ns) / whole * WIDTH)
    left = min(left, WIDTH - 1)
    return (" " * left + (_FULL * cells if cells else _THIN)).ljust(WIDTH)[:WIDTH]


def draw(spans: list[dict[str, Any]]) -> None:
    if not spans:
        print("no spans are held for this request (the stores are bounded; newer requests push older ones out)")
        return
    first = min(span["start_unix_ns"] for span in spans)
    last = max(span["end_unix_ns"] for span in spans)
    named = rows(spans)
    width = max(len("  " * depth + span["name"]) for depth, span in named)
    for depth, span in named:
        name = ("  " * depth + span["name"]).ljust(width)
        failed = "" if span["status"] in {"", "ok"} else f"  {span['status']}"
        print(f"{name} {bar(span['start_unix_ns'], span['end_unix_ns'], first, last)} {span['ms']:9.3f} ms{failed}")
