"""The spans of a request, made from its decision when somebody asks: a warm request pays for none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.gateway.core.decisions import Decision


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """A finished span; `error` is "" where it ended well."""

    name: str
    span_id: str
    parent_span_id: str
    start_unix_ns: int
    end_unix_ns: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


def spans_of_decision(decision: Decision) -> list[RequestSpan]:
    """`infer`, below it `queue` (where it waited for a start) and `forward`, below that the runtime's `load` (where it
    waited for the opening of its instance), `queue` and `run`.

    The runtime keeps no spans: its times are put at the end of the exchange, where they were.
    """
    if not decision.sampled:
        return []
    begin = int(decision.started_unix_s * 1e9)
    end = begin + int(decision.actual_ms * 1e6)
    own = decision.span_id
    shown = {"model": decision.model, "variant": decision.variant, "node": decision.node_id, "start_path": decision.start_path}
    error = "" if decision.outcome == "ok" else decision.outcome
    spans = [RequestSpan("tessera.gateway.infer", own, decision.parent_span_id, begin, end, _said(shown), error)]
    if decision.queued_ms >= 0:
        queued = begin + int(decision.queued_ms * 1e6)
        waited = queued + int(decision.waited_ms * 1e6)
        spans.append(RequestSpan("tessera.gateway.queue", _derived(own, 1), own, queued, waited, {"variant": decision.variant}))
    if decision.attempts and decision.sent_ms:
        sent, forward = begin + int(decision.sent_ms * 1e6), _derived(own, 2)
        where = {"instance": decision.instance_id, "node": decision.node_id, "attempts": str(decision.attempts)}
        spans.append(RequestSpan("tessera.gateway.forward", forward, own, sent, max(sent, end), _said(where), error))
        if decision.run_us:
            ran = max(sent, end - decision.run_us * 1000)
            batch = {"batch_size": str(decision.batch_size), "instance": decision.instance_id}
            queued = max(sent, ran - decision.queue_us * 1000)
            if decision.opening_us:
                opened = max(sent, queued - decision.opening_us * 1000)
                spans.append(RequestSpan("tessera.runtime.load", _derived(own, 5), forward, opened, queued))
            if decision.queue_us:
                spans.append(RequestSpan("tessera.runtime.queue", _derived(own, 3), forward, queued, ran))
            spans.append(RequestSpan("tessera.runtime.run", _derived(own, 4), forward, ran, end, batch))
    return spans


def _said(attributes: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if value}


def _derived(span_id: str, number: int) -> str:
    """The same span has the same id whenever it is made; ids need to differ only within their trace."""
    return f"{(int(span_id, 16) + number) % (1 << 64) or number:016x}"
