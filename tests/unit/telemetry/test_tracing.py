"""Spans: nesting, explicit ids, sampling, the bounded ring, OTLP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tessera import telemetry
from tessera.domain.errors import Conflict, InvalidInput
from tessera.telemetry import FinishedSpan, SpanRing, TraceContext, record_span, span, spans_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def test_spans_nest() -> None:
    with span("outer", model="digits"):
        outer = telemetry.current_context()
        with span("inner") as inner:
            inner.set_attribute("rows", 3)
            assert telemetry.current_trace_id() == outer.trace_id if outer else False
    assert outer is not None
    assert telemetry.current_context() is None
    assert telemetry.current_trace_id() == ""
    first, second = spans_of(outer.trace_id)
    assert (first.name, first.parent_span_id, first.attributes) == ("outer", "", {"model": "digits"})
    assert (second.name, second.parent_span_id, second.attributes) == ("inner", first.span_id, {"rows": "3"})
    assert first.start_unix_ns <= second.start_unix_ns <= second.end_unix_ns <= first.end_unix_ns
    assert first.service == "registry"


def test_a_span_below_what_came_over_a_wire() -> None:
    with span("local", parent=TraceContext(TRACE, PARENT)):
        assert telemetry.current_trace_id() == TRACE
        with span("below"):
            pass
    local, below = spans_of(TRACE)
    assert local.parent_span_id == PARENT
    assert below.parent_span_id == local.span_id


def test_the_root_of_a_trace_whose_id_is_given() -> None:
    with span("outside"), span("root", parent=TraceContext(TRACE)), span("below"):
        pass
    root, below = spans_of(TRACE)
    assert (root.name, root.parent_span_id) == ("root", "")
    assert (below.name, below.parent_span_id) == ("below", root.span_id)
    with span("another"):
        assert telemetry.current_trace_id() not in {"", TRACE}


def test_an_error_is_the_status_and_passes() -> None:
    with pytest.raises(Conflict), span("work", parent=TraceContext(TRACE)):
        raise Conflict("somebody was faster")
    with pytest.raises(KeyError), span("work", parent=TraceContext(TRACE)):
        raise KeyError
    with pytest.raises(asyncio.CancelledError), span("work", parent=TraceContext(TRACE)):
        raise asyncio.CancelledError
    assert [finished.status for finished in spans_of(TRACE)] == ["somebody was faster", "KeyError", "cancelled"]


def test_an_unsampled_trace_makes_nothing() -> None:
    with span("work", parent=TraceContext(TRACE, PARENT, sampled=False)) as outer, span("below") as below:
        assert telemetry.current_context() == TraceContext(TRACE, PARENT, sampled=False)
        assert below is outer
        below.set_attribute("ignored", 1)
    assert telemetry.current_context() is None
    assert spans_of(TRACE) == []


def test_sampling_decides_by_the_trace_id() -> None:
    telemetry.configure("registry", sample_ratio=0.25)
    ids = [telemetry.new_trace_id() for _ in range(400)]
    for trace_id in ids:
        with span("root", parent=TraceContext(trace_id)):
            pass
    recorded = {trace_id for trace_id in ids if spans_of(trace_id)}
    assert recorded == {trace_id for trace_id in ids if telemetry.is_sampled(trace_id)}
    assert 40 < len(recorded) < 180
    # Whoever called us decided already.
    with span("local", parent=TraceContext("f" * 32, PARENT, sampled=True)):
        pass
    assert len(spans_of("f" * 32)) == 1
    telemetry.configure("registry", sample_ratio=0.0)
    with span("root"):
        assert telemetry.spans_of(telemetry.current_trace_id()) == []
        assert not telemetry.is_sampled(telemetry.current_trace_id())


def test_recording_after_the_fact() -> None:
    root = record_span("tessera.gateway.infer", TRACE, start_unix_ns=100, end_unix_ns=900, attributes={"batch": 4, "ok": True})
    record_span("queue", TRACE, parent_span_id=root, start_unix_ns=200, end_unix_ns=300, error="too slow")
    assert record_span("run", TRACE, parent_span_id=root, span_id=PARENT, start_unix_ns=300, end_unix_ns=400) == PARENT
    first, queue, run = spans_of(TRACE)
    assert first == FinishedSpan(TRACE, root, "", "tessera.gateway.infer", "registry", 100, 900, {"batch": "4", "ok": "True"}, "ok")
    assert (queue.parent_span_id, queue.status) == (root, "too slow")
    assert run.span_id == PARENT


def test_tasks_do_not_see_each_others_spans() -> None:
    async def work(trace_id: str) -> str:
        with span("task", parent=TraceContext(trace_id)):
            await asyncio.sleep(0)
            return telemetry.current_trace_id()

    async def main() -> list[str]:
        return await asyncio.gather(work("1" * 32), work("2" * 32))

    assert asyncio.run(main()) == ["1" * 32, "2" * 32]


def test_the_ring_is_bounded_and_takes_the_newest() -> None:
    ring = SpanRing(3)
    for number in range(5):
        ring.add(FinishedSpan(TRACE, f"{number:016x}", "", "s", "registry", 100 - number, 200))
    assert len(ring) == 3
    # Ordered by start, not by arrival.
    assert [finished.span_id[-1] for finished in ring.of_trace(TRACE)] == ["4", "3", "2"]
    assert ring.of_trace("0" * 32) == []


def test_the_ring_is_safe_from_threads() -> None:
    ring = SpanRing(50)
    stop = threading.Event()

    def fill() -> None:
        while not stop.is_set():
            ring.add(FinishedSpan(TRACE, PARENT, "", "s", "registry", 1, 2))

    with futures.ThreadPoolExecutor(2) as pool:
        filling = [pool.submit(fill) for _ in range(2)]
        try:
            for _ in range(300):
                assert len(ring.of_trace(TRACE)) <= 50
        finally:
            stop.set()
        for each in filling:
            each.result()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sample_ratio": 1.5}, "sample_ratio"),
        ({"sample_ratio": -0.1}, "sample_ratio"),
        ({"ring_size": 0}, "ring_size"),
        ({"log_level": "loud"}, "log_level"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        telemetry.configure("registry", **settings)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Stands in for an OpenTelemetry collector."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, Any]:
        return {
            found.name: (resources.resource, found)
            for request in self.requests
            for resources in request.resource_spans
            for scope in resources.scope_spans
            for found in scope.spans
        }


def test_spans_go_out_by_otlp() -> None:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        telemetry.configure("registry", otlp_endpoint=f"http://127.0.0.1:{port}")
        with span("live", parent=TraceContext(TRACE), model="digits"):
            pass
        record_span("after", TRACE, parent_span_id=PARENT, start_unix_ns=100, end_unix_ns=200, error="lost")
        telemetry.shutdown()
        with span("late", parent=TraceContext(TRACE)):
            pass
    finally:
        server.stop(0).wait()
    sent = collector.spans()
    assert set(sent) == {"live", "after"}
    resource, live = sent["live"]
    assert live.trace_id.hex() == TRACE
    assert [attribute.value.string_value for attribute in resource.attributes if attribute.key == "service.name"] == ["tessera-registry"]
    _, after = sent["after"]
    assert (after.parent_span_id.hex(), after.start_time_unix_nano, after.end_time_unix_nano) == (PARENT, 100, 200)
    assert after.status.message == "lost"
    assert {finished.name for finished in spans_of(TRACE)} == {"live", "after", "late"}


def test_the_last_batch_of_a_process_that_ends_goes_out() -> None:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    code = f"""
from tessera import telemetry
telemetry.configure("scheduler", otlp_endpoint="http://127.0.0.1:{port}")
with telemetry.span("last words"):
    pass
"""
    try:
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    finally:
        server.stop(0).wait()
    assert set(collector.spans()) == {"last words"}


def test_the_current_span_is_opentelemetrys() -> None:
    with span("ours"):
        assert trace.get_current_span().get_span_context().is_valid


def test_a_span_that_has_ended_stays_as_it_is() -> None:
    with span("work", parent=TraceContext(TRACE, PARENT), model="digits") as own:
        assert own.is_recording()
        own.set_attributes({"rows": 3})
        own.update_name("more work")
        own.set_status(trace.Status(trace.StatusCode.ERROR, "first words"))
        own.set_status(trace.StatusCode.OK)
    assert not own.is_recording()
    own.set_attribute("late", True)
    own.set_status(trace.StatusCode.ERROR, "late words")
    own.end()
    (found,) = spans_of(TRACE)
    assert (found.name, found.attributes, found.status) == ("more work", {"model": "digits", "rows": "3"}, "ok")


def test_the_events_of_a_span_go_out_with_it() -> None:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        telemetry.configure("registry", otlp_endpoint=f"http://127.0.0.1:{port}")
        with span("work", parent=TraceContext(TRACE, PARENT)) as own:
            own.add_event("looked", {"rows": 3})
            own.record_exception(Conflict("somebody was faster"))
        telemetry.shutdown()
    finally:
        server.stop(0).wait()
    _, work = collector.spans()["work"]
    assert work.parent_span_id.hex() == PARENT
    assert [event.name for event in work.events] == ["looked", "exception"]
    assert {each.key: each.value.string_value for each in work.events[1].attributes}["exception.message"] == "somebody was faster"
