"""Trace context goes through calls, every call leaves a span, and `Traces.GetSpans` tells them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc.aio
import pytest

from tessera import telemetry
from tessera.api.common.v1 import traces_pb2, traces_pb2_grpc
from tessera.domain.errors import InvalidInput, NotFound, TesseraError
from tessera.rpc._guard import span_name

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def telemetry_of_a_service() -> Iterator[None]:
    telemetry.configure("registry", log_level="error")
    yield
    telemetry.configure("")


async def test_a_call_within_a_span_hangs_below_it(client: Any) -> None:
    with telemetry.span("tessera.gateway.ask"):
        trace_id = telemetry.current_trace_id()
        await client.unary(b"ok")
        _ = [message async for message in client.stream_out(b"count 2")]
    spans = {span.name: span for span in telemetry.spans_of(trace_id)}
    assert set(spans) == {"tessera.gateway.ask", "tessera.registry.unary", "tessera.registry.stream_out"}
    asked = spans["tessera.gateway.ask"]
    assert spans["tessera.registry.unary"].parent_span_id == asked.span_id
    assert spans["tessera.registry.stream_out"].parent_span_id == asked.span_id
    assert spans["tessera.registry.unary"].service == "registry"


async def test_context_of_a_foreign_client_is_taken(client: Any) -> None:
    await client.unary(b"ok", metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
    (span,) = telemetry.spans_of(TRACE)
    assert (span.parent_span_id, span.status) == (PARENT, "ok")


async def test_an_unsampled_trace_leaves_nothing(client: Any, echo: Any) -> None:
    with telemetry.span("outside", parent=telemetry.TraceContext(TRACE, PARENT, sampled=False)):
        await client.unary(b"ok")
    assert telemetry.spans_of(TRACE) == []
    assert echo.metadata[-1]["traceparent"] == f"00-{TRACE}-{PARENT}-00"


@pytest.mark.parametrize("traceparent", ["", "00-abc", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
async def test_a_malformed_context_starts_a_new_trace(client: Any, traceparent: str) -> None:
    assert await client.unary(b"ok", metadata=(("traceparent", traceparent),)) == b"ok"
    assert telemetry.spans_of(TRACE) == []


@pytest.mark.parametrize("method", ["unary", "stream_out", "written_out"])
async def test_a_failure_is_the_status_of_its_span(client: Any, method: str) -> None:
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
    call = getattr(client, method)(b"raise not_found", metadata=metadata)

    async def drain() -> list[Any]:
        return [await call] if method == "unary" else [message async for message in call]

    with pytest.raises(NotFound):
        await drain()
    (span,) = telemetry.spans_of(TRACE)
    assert span.status == "about not_found"
    assert span.attributes["error_kind"] == "not_found"


async def test_traces_answers_from_the_ring(client: Any, channel: grpc.aio.Channel) -> None:
    await client.unary(b"ok", metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
    traces = traces_pb2_grpc.TracesStub(channel)
    answer = await traces.GetSpans(traces_pb2.GetSpansRequest(trace_id=TRACE))
    (span,) = answer.spans
    assert (span.name, span.trace_id, span.parent_span_id, span.service) == ("tessera.registry.unary", TRACE, PARENT, "registry")
    assert 0 < span.start_unix_ns <= span.end_unix_ns
    nothing = await traces.GetSpans(traces_pb2.GetSpansRequest(trace_id="1" * 32))
    assert not nothing.spans
    # Asking leaves no span itself.
    assert len(telemetry.spans_of(TRACE)) == 1


@pytest.mark.parametrize("trace_id", ["", "abc", TRACE.upper(), TRACE + "0"])
async def test_a_malformed_trace_id_is_refused(channel: grpc.aio.Channel, trace_id: str) -> None:
    traces = traces_pb2_grpc.TracesStub(channel)
    with pytest.raises(TesseraError, match="trace_id") as caught:
        await traces.GetSpans(traces_pb2.GetSpansRequest(trace_id=trace_id))
    assert isinstance(caught.value, InvalidInput)


def test_the_name_of_a_span() -> None:
    assert span_name("/tessera.api.scheduler.v1.Scheduler/StartInstance") == "tessera.registry.start_instance"
    assert span_name("/inference.GRPCInferenceService/ModelInfer") == "tessera.registry.model_infer"
