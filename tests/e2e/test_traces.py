"""A cold start as its spans tell it: through gateway, scheduler and node agent, on the spot and at a collector."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import e2e_models
import grpc
import numpy as np
import pytest
from e2e_platform import Platform, tessera, until
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

PARENTS = {
    "tessera.gateway.queue": "tessera.gateway.infer",
    "tessera.gateway.forward": "tessera.gateway.infer",
    "tessera.gateway.start": "tessera.gateway.infer",
    "tessera.scheduler.start_instance": "tessera.gateway.start",
    "tessera.scheduler.decide": "tessera.scheduler.start_instance",
    "tessera.node_agent.start_instance": "tessera.scheduler.start_instance",
    "tessera.node_agent.map": "tessera.node_agent.start_instance",
    "tessera.node_agent.load": "tessera.node_agent.start_instance",
    "tessera.runtime.run": "tessera.gateway.forward",
}
"""Every span that a cold start has at least, and what it hangs below."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "image.npy"
    np.save(path, e2e_models.images(1))
    return path


@pytest.fixture
def cold(platform: Platform, tmp_path: Path) -> Iterator[str]:
    """A model that nobody has asked for yet."""
    source = e2e_models.save_net(tmp_path, "cold", head_seed=5)
    with platform.client() as client:
        client.register("cold", source, wait=True)
        yield "cold"
        client.delete_model("cold")


def test_a_cold_start_is_one_trace_through_all_three_services(platform: Platform, cold: str, image: Path) -> None:
    asked = platform.json("infer", cold, "-i", f"image={image}")
    assert asked["start_path"] in {"bind", "fork"}

    def shown() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = platform.json("trace", "show", asked["request_id"])
        return found if PARENTS.keys() <= {span["name"] for span in found} else []

    spans = until(shown, f"the trace has {', '.join(PARENTS)}", within_s=20)  # the node agent tells its stages behind the answer
    names = {span["span_id"]: span["name"] for span in spans}
    (root,) = [span for span in spans if span["name"] == "tessera.gateway.infer"]
    assert root["parent_span_id"] not in names, "above it is only what the client has"
    for span in spans:
        if span["name"] in PARENTS:
            assert names.get(span["parent_span_id"]) == PARENTS[span["name"]], span
            assert (span["service"], span["status"]) == (span["name"].split(".")[1].replace("runtime", "gateway"), "ok")
            assert root["start_unix_ns"] <= span["start_unix_ns"] <= span["end_unix_ns"], span
        if span["name"] in ("tessera.node_agent.map", "tessera.node_agent.load"):
            told = span["attributes"]
            assert (told["start_path"], told["variant"]) == (asked["start_path"], f"cold@1/{asked['variant']}")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What an OTLP collector is sent, as (service, span)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        for group in request.resource_spans:
            (name,) = [each.value.string_value for each in group.resource.attributes if each.key == "service.name"]
            self.spans += [(name, span) for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, int]]:
    found = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield found, port
    finally:
        server.stop(0).wait()


def test_a_collector_gets_the_spans_of_every_service(collector: tuple[Collector, int], sources: Path, image: Path, tmp_path: Path) -> None:
    received, port = collector
    told = Platform(tmp_path / "state")
    words = ("up", "--detach", "--state", str(told.state), "--port-base", str(told.port_base), "--store", told.store)
    try:
        done = tessera(*words, "--otlp-endpoint", f"http://127.0.0.1:{port}")
        assert done.returncode == 0, done.stderr + told.last_words()
        registered = told.tessera("model", "register", "net", str(sources / "net.pt2"), "--wait")
        assert registered.returncode == 0, registered.stderr
        asked = told.json("infer", "net", "-i", f"image={image}")
        profiled = told.tessera("profile", "run", "net", "--quick", "--variant", asked["variant"])
        assert profiled.returncode == 0, profiled.stderr
    finally:
        told.end()  # every process sends its last batch before it ends
    services = {service.removeprefix("tessera-") for service, _ in received.spans}
    assert services == {"gateway", "scheduler", "node_agent", "registry", "profiler"}
    trace = [span for _, span in received.spans if span.trace_id.hex() == asked["request_id"]]
    names = {span.span_id: span.name for span in trace}
    assert {span.name: names.get(span.parent_span_id) for span in trace if span.name in PARENTS} == PARENTS
