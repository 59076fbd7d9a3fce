from __future__ import annotations

import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from tessera.domain.errors import FailedPrecondition, InvalidInput
from tessera.telemetry import MetricsServer


def test_metrics_are_served_and_the_port_is_freed() -> None:
    registry = CollectorRegistry()
    Counter("tessera_test_things", "things", registry=registry).inc(3)
    server = MetricsServer("127.0.0.1:0", registry)
    server.stop()
    server.start()
    port = server.port
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert b"tessera_test_things_total 3.0" in answer.read()
        with pytest.raises(FailedPrecondition, match=str(port)):
            MetricsServer(f"127.0.0.1:{port}", registry).start()
    finally:
        server.stop()
    server.stop()
    again = MetricsServer(f"127.0.0.1:{port}", registry)
    again.start()
    again.stop()


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", ":8002", "localhost:http", "localhost:70000"])
def test_a_malformed_address_is_named(address: str) -> None:
    with pytest.raises(InvalidInput, match="metrics address"):
        MetricsServer(address)
