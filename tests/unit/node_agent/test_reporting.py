"""What a node tells the scheduler's leader, how it finds it, and how it looks on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import InvalidInput, StaleTerm, Unavailable
from tessera.domain.ids import Term
from tessera.node_agent.loops.pulse import Pulse
from tessera.node_agent.loops.reporter import Report, Reporter
from tessera.node_agent.server import NodeAgentServer, status_message
from tessera.program import Stop, Tasks
from tessera.testing import LoopClock


class FakeLeader:
    """Implements `Leader`: takes reports in; `hang_up` ends the stream. Etcd refuses while it is `away`, or `hangs`."""

    def __init__(self) -> None:
        self.where: str | None = "leader-1"
        self.away = self.hangs = False
        self.streams: list[tuple[str, list[Report]]] = []
        self.term = Term(1, 20)
        self.got = asyncio.Event()
        self.hang_up = asyncio.Event()

    async def address(self) -> str | None:
        if self.away:
            if self.hangs:
                await asyncio.get_running_loop().create_future()
            raise Unavailable("etcd is away")
        return self.where

    async def report(self, address: str, reports: AsyncIterator[Report], heard: Callable[[Term], Awaitable[None]]) -> None:
        taken: list[Report] = []
        self.streams.append((address, taken))
        await heard(self.term)
        async for report in reports:
            taken.append(report)
            self.got.set()
            if self.hang_up.is_set():
                raise Unavailable("not the leader any more")

    async def count(self, number: int) -> list[Report]:
        """The newest stream once it has that many reports."""
        async with asyncio.timeout(5):
            while not self.streams or len(self.streams[-1][1]) < number:
                self.got.clear()
                await self.got.wait()
        return self.streams[-1][1]


@pytest.fixture
async def leader(node: Any) -> AsyncIterator[FakeLeader]:
    stop, found = Stop(), FakeLeader()
    async with Tasks(stop) as tasks:
        pulse = Pulse()
        found.pulse = pulse  # type: ignore[attr-defined]
        tasks.start("report", Reporter(node.agent, found, 0.05, LoopClock(), pulse).run(stop))
        yield found
        stop.request("test over")
        async with asyncio.timeout(5):
            while len(tasks):  # noqa: ASYNC110 - it ends by itself
                await asyncio.sleep(0.01)
    assert stop.error is None


async def test_everything_first_then_changes(node: Any, leader: FakeLeader) -> None:
    (first, *_) = await leader.count(1)
    assert (first[1]["default"].full, first[1]["default"].added) == (True, ())
    instance = await node.start("a", node.make_artifact(), term=Term(1, 20))
    reports = await leader.count(len(leader.streams[-1][1]) + 2)
    assert [report[1]["default"].full for report in reports] == [True] + [False] * (len(reports) - 1)
    known: set[str] = set()
    for _, changes in reports:
        change = changes["default"]
        known = (known | set(change.added)) - set(change.removed)
    assert known == set(node.store.digests())
    assert reports[-1][0].instances[0].instance == node.table.get(instance.instance_id)


async def test_the_leaders_term_is_on_disk_before_it_asks_for_anything(node: Any, leader: FakeLeader) -> None:
    await leader.count(1)
    assert node.terms.load() == Term(1, 20)
    with pytest.raises(StaleTerm):
        await node.start("a", node.make_artifact(), term=Term(1, 19))


async def test_a_stream_that_ends_begins_again_in_full(node: Any, leader: FakeLeader) -> None:
    await node.start("a", node.make_artifact(), term=Term(1, 20))
    await leader.count(2)
    leader.hang_up.set()
    async with asyncio.timeout(5):
        while len(leader.streams) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    leader.hang_up.clear()
    reports = await leader.count(1)
    assert reports[0][1]["default"].full
    assert set(reports[0][1]["default"].added) == set(node.store.digests())


async def test_another_leader_is_found(leader: FakeLeader) -> None:
    await leader.count(1)
    leader.where = "leader-2"
    leader.hang_up.set()
    async with asyncio.timeout(5):
        while leader.streams[-1][0] != "leader-2":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_while_etcd_is_away_the_last_leader_goes_on(leader: FakeLeader) -> None:
    await leader.count(1)
    leader.away = True
    seen = len(leader.streams[-1][1])
    await leader.count(seen + 3)
    assert len(leader.streams) == 1


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_stream_that_breaks_while_etcd_is_away_begins_again_with_the_last_leader(
    leader: FakeLeader, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessera.node_agent.loops.reporter.LEADER_CHECK_S", 0.05)
    await leader.count(1)
    leader.away, leader.hangs = True, hangs
    leader.hang_up.set()
    async with asyncio.timeout(5):
        while len(leader.streams) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    leader.hang_up.clear()
    (first, *_) = await leader.count(2)
    assert (leader.streams[-1][0], first[1]["default"].full) == ("leader-1", True)


async def test_status_on_the_wire(node: Any) -> None:
    artifact = node.make_artifact()
    instance = await node.start("a", artifact)
    (runtime,) = node.runtimes.live
    server = NodeAgentServer(node.agent)
    status = (await server.GetStatus(node_pb2.GetStatusRequest(), None)).status
    assert (status.node_id, status.full, status.stores[0].trust_domain, status.agent_address) == ("n1", True, "default", "127.0.0.1:1")
    assert {digest.hex() for digest in status.stores[0].digests_added} == set(node.store.digests())
    (shown,) = status.instances
    assert (shown.instance_id, shown.generation, shown.state, shown.pid) == ("a", instance.generation, "ready", runtime.hello.pid)
    assert shown.endpoint.unix_path == f"{node.folder}/d-37a8ee/{instance.runtime_id}/data.sock"
    assert (shown.endpoint.relay_address, shown.endpoint.runtime_id) == ("127.0.0.1:2", instance.runtime_id)
    assert shown.artifact_digest == artifact
    assert shown.shared_bytes == status.stores[0].used_bytes
    assert status.runtimes[0].instances == 1


async def test_a_failed_instance_shows_its_error_and_no_endpoint(node: Any, make: Any) -> None:
    with pytest.raises(Exception, match="blob"):
        await node.start("a", make.digest(77))
    message = status_message((await node.agent.summary(refresh=False), _nothing()))
    (shown,) = message.instances
    assert shown.state == "failed"
    assert make.digest(77) in shown.error
    assert not shown.HasField("endpoint")


def _nothing() -> Any:
    from tessera.node_agent.core.changes import DigestChange

    return {"default": DigestChange(False, (), ())}


def request(**changes: Any) -> node_pb2.StartInstanceRequest:
    fields: dict[str, Any] = {
        "term": common_pb2.Term(cluster_id=1, revision=5),
        "instance_id": "a",
        "generation": 9,
        "variant": common_pb2.VariantKey(trust_domain="default", model="identity", version=1, variant="identity-any"),
        "start_path": "bind",
        "expires_after_ms": 1000,
        "budget_us": 5_000_000,
    }
    return node_pb2.StartInstanceRequest(**(fields | changes))


async def test_an_order_on_the_wire(node: Any) -> None:
    server = NodeAgentServer(node.agent)
    answer = (await server.StartInstance(request(), None)).instance
    assert (answer.state, answer.generation, answer.start_path) == ("ready", 9, "fork")
    assert answer.pid == node.runtimes.live[0].hello.pid
    assert node.table.get("a").expires_at_s == node.clock.monotonic_s() + 1.0
    await server.StopInstance(node_pb2.StopInstanceRequest(term=common_pb2.Term(cluster_id=1, revision=5), instance_id="a"), None)
    assert not node.table.get("a").alive


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"term": common_pb2.Term()}, r"term\.revision"),
        ({"instance_id": ""}, "instance_id"),
        ({"instance_id": "../x"}, "instance_id"),
        ({"generation": 0}, "generation"),
        ({"variant": common_pb2.VariantKey()}, r"variant\.trust_domain"),
        ({"artifact_digest": "abc"}, "artifact_digest"),
        ({"start_path": "magic"}, "start_path"),
    ],
)
async def test_a_bad_order_names_the_field_and_leaves_nothing(node: Any, changes: dict[str, Any], words: str) -> None:
    server = NodeAgentServer(node.agent)
    with pytest.raises(InvalidInput, match=words):
        await server.StartInstance(request(**changes), None)
    assert len(node.table) == 0
