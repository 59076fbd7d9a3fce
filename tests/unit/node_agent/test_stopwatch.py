from __future__ import annotations

import pytest

from tessera import telemetry
from tessera.domain.instance import Stage, StageTime, StartPath
from tessera.node_agent.loops import stopwatch
from tessera.node_agent.loops.stopwatch import Stopwatch
from tessera.telemetry import TraceContext, span, spans_of
from tessera.testing import VirtualClock

TRACE, PARENT = "1" * 32, "2" * 16


@pytest.fixture(autouse=True)
def fresh_ring():
    telemetry.configure("node-agent", ring_size=100, log_level="warning")
    yield
    telemetry.configure("", log_level="warning")


def measured(clock: VirtualClock) -> Stopwatch:
    """Half a second of fetching, then a load of one second in a new runtime, which accounts for 900 ms of it."""
    watch = Stopwatch(clock)
    with watch.stage(Stage.FETCH):
        clock.move(0.5)
    clock.move(0.25)
    with watch.loading(Stage.FORK) as loading:
        clock.move(1.0)
        loading.take((StageTime(Stage.MAP, 300.0), StageTime(Stage.LOAD, 600.0)))
    return watch


def test_every_stage_becomes_a_span_below_the_request(make):
    clock = VirtualClock()
    begun_ms = clock.wall_s() * 1e3
    with span("tessera.node_agent.start_instance", parent=TraceContext(TRACE, PARENT)):
        watch = measured(clock)
    (request,) = spans_of(TRACE)
    watch.record_spans(make.instance("i1", start_path=StartPath.FORK, runtime_id="rt-1"))
    stages = [each for each in spans_of(TRACE) if each.span_id != request.span_id]
    assert {each.parent_span_id for each in stages} == {request.span_id}
    assert {each.service for each in stages} == {"node-agent"}
    at_ms = {each.name: (each.start_unix_ns / 1e6 - begun_ms, each.end_unix_ns / 1e6 - begun_ms) for each in stages}
    assert at_ms == {
        "tessera.node_agent.fetch": pytest.approx((0, 500), abs=0.01),
        "tessera.node_agent.fork": pytest.approx((750, 850), abs=0.01),
        "tessera.node_agent.map": pytest.approx((850, 1150), abs=0.01),
        "tessera.node_agent.load": pytest.approx((1150, 1750), abs=0.01),
    }
    for each in stages:
        assert each.attributes == {"instance_id": "i1", "variant": str(make.variant()), "start_path": "fork", "runtime_id": "rt-1"}


@pytest.mark.parametrize("context", [None, TraceContext(TRACE, PARENT, sampled=False)], ids=["no trace", "not sampled"])
def test_a_start_that_nobody_traces_leaves_no_span(make, context, monkeypatch):
    recorded: list[str] = []
    monkeypatch.setattr(stopwatch, "record_span", lambda name, *_, **__: recorded.append(name))
    clock = VirtualClock()
    if context is None:
        watch = measured(clock)
    else:
        with span("tessera.node_agent.start_instance", parent=context):
            watch = measured(clock)
    watch.record_spans(make.instance())
    assert recorded == []
    assert [time.stage for time in watch.stages()] == [Stage.FETCH, Stage.FORK, Stage.MAP, Stage.LOAD]
