"""What may happen to a node: killed runtimes, agents and relays, no etcd, two agents, bad folders."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2
from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.coord import keys, records
from tessera.coord.interface import Delete, ModRevisionIs, Put
from tessera.domain.errors import StaleTerm, TesseraError
from tessera.domain.ids import Generation, InstanceId, ModelName, NodeId, Term, TrustDomain, VariantKey, VariantName, VersionNumber
from tessera.domain.instance import StartPath
from tessera.domain.records import AssignmentRecord
from tessera.testing.etcd import free_port

DOMAIN = TrustDomain("default")


class Load:
    """Requests one after another, for as long as it runs; every answer is compared."""

    def __init__(self, kit: Any, client: Any, instance: Any) -> None:
        self.kit, self.client, self.instance = kit, client, instance
        self.answered = 0
        self.errors: list[str] = []
        self.stop = asyncio.Event()

    async def run(self) -> None:
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        while not self.stop.is_set():
            try:
                assert np.array_equal(await self.kit.ask(self.client, self.instance.generation, x, "INPUT0"), x)
                self.answered += 1
            except TesseraError as error:
                self.errors.append(str(error))
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)

    async def progress(self, more: int = 50) -> None:
        """Waits until it has answered some more."""
        wanted = self.answered + more
        async with asyncio.timeout(20):
            while self.answered < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_requests_go_on_without_an_agent_and_the_next_one_adopts(agent: Any, kit: Any, coord: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    identity, linear = await agent.start_instance("a"), await agent.start_instance("b", model.artifact)
    before = {item.instance_id: item for item in (await agent.status()).instances}
    pids = {process.pid for process in kit.processes_of(agent.run)}
    relayed, direct = await kit.relayed(identity), await kit.direct(identity)
    loads = [Load(kit, relayed, identity), Load(kit, direct, identity)]
    async with asyncio.TaskGroup() as group:
        for load in loads:
            group.create_task(load.run())
        await loads[0].progress()
        await agent.hang_up()
        agent.kill()
        for load in loads:
            await load.progress()
        fresh = await kit.relayed(identity)  # a new connection while nobody is at home
        fresh.close()
        await agent.start()
        after = {item.instance_id: item for item in (await agent.status()).instances}
        for load in loads:
            await load.progress()
            load.stop.set()
    assert [load.errors for load in loads] == [[], []]
    for name in ("a", "b"):
        for field in (
            "generation",
            "runtime_id",
            "pid",
            "start_path",
            "fetched",
            "shared_bytes",
            "artifact_digest",
            "max_batch",
            "private_bytes",
        ):
            assert getattr(after[name], field) == getattr(before[name], field), field
        assert after[name].endpoint == before[name].endpoint
        assert [time.stage for time in after[name].stages] == [time.stage for time in before[name].stages]
    assert pids <= {process.pid for process in kit.processes_of(agent.run)}  # nothing was started anew
    status = await agent.status()
    assert status.stores[0].pinned_bytes >= model.weight.nbytes  # holds were declared again
    await asyncio.sleep(2.5)  # longer than the first agent's lease
    assert (await coord.instances()).keys() == {"a", "b"}
    x = np.ones((1, kit.width), np.float32)
    client = await kit.direct(linear)
    np.testing.assert_allclose(await kit.ask(client, linear.generation, x), model.expected(x), atol=1e-4)
    for each in (client, relayed, direct):
        each.close()
    assert await agent.terminate() == 0
    assert kit.processes_of(agent.run) == []


async def test_a_killed_runtime_costs_its_instances_and_nothing_else(agent: Any, kit: Any, coord: Any, sigkill: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start()
    victim, other = await agent.start_instance("a", model.artifact), await agent.start_instance("b", start_path="fork")
    await agent.until(lambda: _names(coord, {"a", "b"}))
    client = await kit.direct(victim)
    sigkill(victim.pid)
    await agent.until(lambda: _names(coord, {"b"}))
    failed = await agent.instance("a")
    assert (failed.state, "ended" in failed.error) == ("failed", True)
    with pytest.raises(TesseraError):
        await kit.ask(client, victim.generation, np.ones((1, kit.width), np.float32))
    client.close()
    assert not (agent.runtimes / victim.runtime_id).exists()
    again = await agent.start_instance("c", model.artifact)
    assert (again.state, again.fetched) == ("ready", False)
    assert (await agent.instance("b")).pid == other.pid
    await agent.until(lambda: _pool_is_full(agent))
    await agent.until(lambda: _forgotten(agent, "a"))


async def _names(coord: Any, wanted: set[str]) -> bool:
    return set(await coord.instances()) == wanted


async def _forgotten(agent: Any, name: str) -> bool:
    return await agent.instance(name) is None


async def _pool_is_full(agent: Any) -> bool:
    return any(item.instances == 0 for item in (await agent.status()).runtimes)


async def test_a_killed_relay_and_a_killed_zygote_come_back(agent: Any, kit: Any, sigkill: Any) -> None:
    await agent.start()
    instance = await agent.start_instance("a")
    relay = json.loads((agent.run / "relay.json").read_text())
    (zygote,) = [process for process in kit.processes_of(agent.run) if process.ppid() == agent.process.pid and process.pid != relay["pid"]]
    sigkill(zygote.pid)
    sigkill(relay["pid"])
    client = await kit.direct(instance)  # runtimes do not depend on either
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(await kit.ask(client, instance.generation, x, "INPUT0"), x)
    client.close()
    assert (await agent.start_instance("b", start_path="fork")).state == "ready"

    async def is_back() -> bool:
        info = agent.run / "relay.json"
        return info.exists() and json.loads(info.read_text())["pid"] != relay["pid"]

    await agent.until(is_back)
    shown = await agent.instance("a")
    client = await kit.relayed(shown)
    assert np.array_equal(await kit.ask(client, instance.generation, x, "INPUT0"), x)
    client.close()


async def test_a_second_agent_on_the_store_is_refused_with_the_first_ones_pid(agent: Any) -> None:
    await agent.start()
    second = agent.spawn(address=f"127.0.0.1:{free_port()}", node_id="n2")
    assert await asyncio.to_thread(second.wait, 30) == 1
    (line,) = [line for line in agent.log.read_text().splitlines() if "failed_precondition" in line]
    assert str(agent.process.pid) in line
    assert (await agent.start_instance("a")).state == "ready"  # the first one did not notice


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"state_folder": "/proc/nowhere"}, "state_folder /proc/nowhere cannot be written"),
        ({"run_folder": "/proc/nowhere"}, "run_folder /proc/nowhere cannot be written"),
        ({"stores": [{"budget_bytes": 1 << 50}]}, "more than this machine's memory"),
    ],
)
async def test_a_node_that_cannot_be_set_up_says_why_and_leaves_nothing(agent: Any, kit: Any, settings: dict[str, Any], words: str) -> None:
    process = agent.spawn(**settings)
    assert await asyncio.to_thread(process.wait, 30) == 1
    assert words in agent.log.read_text()
    assert kit.processes_of(agent.run) == []


async def test_an_address_in_use_is_refused_and_what_was_begun_is_taken_down(agent: Any, kit: Any) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    taken = server.sockets[0].getsockname()[1]
    process = agent.spawn(address=f"127.0.0.1:{taken}")
    assert await asyncio.to_thread(process.wait, 60) == 1
    assert f"127.0.0.1:{taken} is in use" in agent.log.read_text()
    assert kit.processes_of(agent.run) == []
    assert str(agent.run) not in Path("/proc/self/mounts").read_text()
    server.close()


async def test_a_node_works_without_etcd_and_is_seen_when_it_comes(agent: Any, tmp_path: Path, kit: Any) -> None:
    from tessera.coord.binary import EtcdProcess, find_etcd

    port, peer = free_port(), free_port()
    await agent.start(etcd_endpoints=[f"127.0.0.1:{port}"])
    instance = await agent.start_instance("a", expires_after_ms=1)
    await asyncio.sleep(2.0)  # expired, but nobody can say that there is no record
    client = await kit.relayed(instance)
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(await kit.ask(client, instance.generation, x, "INPUT0"), x)
    client.close()
    assert (await agent.instance("a")).state == "ready"
    etcd = EtcdProcess(find_etcd(), tmp_path / "late", port, peer)
    try:
        await etcd.start()
        await agent.until(lambda: _forgotten_or_gone(agent, "a"))  # now somebody can
        second = await agent.start_instance("b")
        assert second.state == "ready"
        from tessera.coord.etcd import EtcdCoordinator

        coordinator = EtcdCoordinator([f"127.0.0.1:{port}"])

        async def is_seen() -> Any:
            node = await coordinator.get(keys.node(DOMAIN, NodeId("n1")))
            listing = await coordinator.list(keys.instances(DOMAIN))
            return node is not None and [item.key.rpartition("/")[2] for item in listing.items] == ["b"]

        await agent.until(is_seen)
        await coordinator.close()
        assert await agent.terminate() == 0
    finally:
        await etcd.kill()


async def _forgotten_or_gone(agent: Any, name: str) -> bool:
    found = await agent.instance(name)
    return found is None or found.state == "gone"


async def test_assignments_start_confirm_and_stop(agent: Any, coord: Any) -> None:
    await agent.start()
    variant = VariantKey(DOMAIN, ModelName("linear"), VersionNumber(1), VariantName("any"))
    from tessera.node_agent.core.artifacts import identity_artifact
    from tessera.tensorstore.artifact import encode

    artifact = agent.repository.put_bytes(encode(identity_artifact()))
    record = AssignmentRecord(InstanceId("a"), NodeId("n1"), variant, artifact, Generation(77), StartPath.BIND, Term(1, 1))
    key = keys.assignment(DOMAIN, NodeId("n1"), InstanceId("a"))
    revision = await coord.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, records.encode(record))])
    await agent.until(lambda: _names(coord, {"a"}))
    assert (await agent.instance("a")).generation == 77
    await agent.start_instance("provisional", expires_after_ms=6000)
    await coord.coordinator.transact([ModRevisionIs(key, revision)], [Delete(key)])
    await agent.until(lambda: _names(coord, {"provisional"}))
    assert (await agent.instance("provisional")).state == "ready"
    await agent.until(lambda: _names(coord, set()))  # nobody wrote a record for it
    assert await agent.until(lambda: _forgotten(agent, "provisional"))


async def test_an_older_leader_is_refused_also_after_kill_9(agent: Any) -> None:
    await agent.start()
    await agent.start_instance("a", term=common_pb2.Term(cluster_id=1, revision=9))
    await agent.hang_up()
    agent.kill()
    await agent.start()
    with pytest.raises(StaleTerm, match="term 8 is older than term 9"):
        await agent.start_instance("b", term=common_pb2.Term(cluster_id=1, revision=8))
    with pytest.raises(StaleTerm):
        await agent.stop_instance("a", revision=8)
    assert (await agent.instance("a")).state == "ready"


async def test_leaving_keeps_runtimes_for_the_next_agent(agent: Any, kit: Any) -> None:
    await agent.start(on_stop="leave")
    instance = await agent.start_instance("a")
    assert await agent.terminate() == 0
    client = await kit.relayed(instance)
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(await kit.ask(client, instance.generation, x, "INPUT0"), x)
    client.close()
    await agent.start()
    shown = await agent.instance("a")
    assert (shown.generation, shown.pid) == (instance.generation, instance.pid)
    assert await agent.terminate() == 0
    assert kit.processes_of(agent.run) == []


async def test_a_full_store_refuses_and_says_who_holds_it(agent: Any, kit: Any) -> None:
    models = [kit.make_linear(agent.repository, "ort", seed) for seed in range(3)]
    await agent.start(stores=[{"budget_bytes": 40_000}], evict_idle_s=600.0)  # none is idle that long: nobody makes room
    await agent.start_instance("a", models[0].artifact)
    await agent.start_instance("b", models[1].artifact)
    with pytest.raises(TesseraError, match=r"budget 40000, used (\d+) .*, pinned \1 by rt-ort-") as caught:
        await agent.start_instance("c", models[2].artifact)
    assert caught.value.kind == "resource_exhausted"
    await agent.stop_instance("a")
    assert (await agent.start_instance("d", models[2].artifact)).state == "ready"  # what nobody holds made room
    status = await agent.status()
    assert status.stores[0].used_bytes <= 40_000


class FakeScheduler(scheduler_pb2_grpc.SchedulerServicer):
    def __init__(self) -> None:
        self.streams: list[list[node_pb2.NodeStatus]] = []

    async def ReportStatus(self, request_iterator: Any, context: Any) -> Any:
        taken: list[node_pb2.NodeStatus] = []
        self.streams.append(taken)
        yield scheduler_pb2.ReportStatusResponse(term=common_pb2.Term(cluster_id=1, revision=50))
        async for status in request_iterator:
            taken.append(status)  # noqa: PERF401 - seen while it comes


async def test_the_leader_gets_status_and_is_obeyed_from_then_on(agent: Any, coord: Any) -> None:
    scheduler, server = FakeScheduler(), grpc.aio.server()
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(scheduler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    session = await coord.coordinator.session(10.0)
    try:
        await coord.coordinator.campaign(keys.SCHEDULER_ELECTION, session, f"127.0.0.1:{port}".encode())
        await agent.start()

        async def term_is_known() -> bool:
            return (agent.folder / "state" / "term").exists()

        await agent.until(term_is_known)
        with pytest.raises(StaleTerm):
            await agent.start_instance("a")  # term 5
        await agent.start_instance("a", term=common_pb2.Term(cluster_id=1, revision=50))

        async def shows_it() -> bool:
            return any(item.instance_id == "a" and item.state == "ready" for status in scheduler.streams[-1] for item in status.instances)

        await agent.until(shows_it)
        (stream,) = scheduler.streams
        assert [status.full for status in stream] == [True] + [False] * (len(stream) - 1)
        assert sum(len(status.stores[0].digests_added) for status in stream) == len((await agent.status()).stores[0].digests_added)
    finally:
        await session.close()
        await agent.hang_up()
        await server.stop(None)
