"""What a node uses: rates, the machine, and how it gets onto the wire and into metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tessera.api.node.v1 import node_pb2
from tessera.domain.ids import InstanceId
from tessera.node_agent.adapters.machine import ProcMachine
from tessera.node_agent.core.rates import Rate
from tessera.node_agent.core.runtimes import Purpose
from tessera.node_agent.server import NodeAgentServer


def test_a_rate_is_of_a_whole_interval_however_often_somebody_looks() -> None:
    rate = Rate(1.0)
    assert rate.note(100, 10.0) == 0.0
    assert rate.note(150, 10.5) == 0.0
    assert rate.note(200, 11.0) == 100.0
    assert rate.note(200, 11.1) == 100.0
    assert rate.note(210, 13.0) == 5.0


def test_a_total_that_fell_began_anew() -> None:
    rate = Rate(1.0)
    rate.note(100, 0.0)
    assert rate.note(200, 2.0) == 50.0
    assert rate.note(3, 4.0) == 50.0
    assert rate.note(5, 5.0) == 2.0


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "stat").write_text("cpu  200 100 300 9000 400 10 20 30 40 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable:   600 kB\nHugePages_Total:  0\n")
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "memory").write_text(
        "some avg10=12.50 avg60=1.00 avg300=0.00 total=5\nfull avg10=1.00 avg60=0 avg300=0 total=1\n"
    )
    return tmp_path


def test_the_machine_as_proc_tells_it(proc: Path) -> None:
    use = ProcMachine(proc).use()
    assert use.cpu_s == pytest.approx((200 + 100 + 300 + 10 + 20) / 100)
    assert (use.memory_bytes, use.memory_available_bytes, use.memory_pressure) == (1000 << 10, 600 << 10, 0.125)


def test_a_kernel_without_pressure_figures(proc: Path) -> None:
    (proc / "pressure" / "memory").unlink()
    assert ProcMachine(proc).use().memory_pressure == 0.0


def test_this_machine() -> None:
    use = ProcMachine().use()
    assert 0 < use.memory_available_bytes < use.memory_bytes
    assert use.cpu_s > 0


async def test_use_on_the_wire_and_in_metrics(node: Any) -> None:
    await node.start("a", node.make_artifact())
    server = NodeAgentServer(node.agent)
    await server.GetStatus(node_pb2.GetStatusRequest(), None)
    (runtime,) = node.runtimes.live
    runtime.cpu_s = 0.5
    await node.clock.advance(2.0)
    status = (await server.GetStatus(node_pb2.GetStatusRequest(), None)).status
    (found,) = status.runtimes
    assert (found.private_bytes, found.shared_bytes, found.proportional_bytes, found.kind) == (5000, 4000, 3000, "process")
    assert found.cpu_cores == pytest.approx(0.25)
    assert (status.cpu_cores, status.memory_bytes, status.memory_available_bytes) == (pytest.approx(1.5), 16 << 30, 12 << 30)
    assert status.memory_pressure == 0.25
    await node.agent.reconcile_once()

    def metric(name: str, **labels: str) -> float | None:
        found: float | None = node.metrics.get_sample_value(f"tessera_node_agent_{name}", labels)
        return found

    assert metric("runtime_bytes", flavour="ort", kind="private") == 5000
    assert metric("runtime_bytes", flavour="ort", kind="shared") == 4000
    assert metric("instances", flavour="ort", kind="open") == 1
    assert metric("instances", flavour="ort", kind="parked") == 0
    assert metric("cpu_cores") == pytest.approx(1.5)
    assert metric("memory_available_bytes") == 12 << 30
    assert metric("memory_pressure_ratio") == 0.25
    assert metric("store_unlinked_bytes", trust_domain="default") == 0


async def test_a_runtime_is_heard_on_its_own_instances_only(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.start("a", node.make_artifact())
    (own,) = node.runtimes.live
    await node.fleet.create("ort", Purpose.SHARED)
    _, other = node.runtimes.live
    monkeypatch.setattr(other, "loaded", own.loaded)  # it was taken over, and speaks for another runtime's instance
    monkeypatch.setattr(own, "loaded", {})
    await node.fleet.refresh(0.0)
    assert node.table.get(InstanceId("a")).served == 0
    assert node.fleet._served == {}
    monkeypatch.setattr(own, "loaded", other.loaded)
    await node.fleet.refresh(0.0)
    assert node.table.get(InstanceId("a")).served == 7
