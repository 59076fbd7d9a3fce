"""The agent's loop: provisional assignments, etcd away, terms, adoption, pool, status."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tessera.domain.errors import FailedPrecondition, StaleTerm, Unavailable
from tessera.domain.ids import Digest, InstanceId, RuntimeId, Term
from tessera.domain.instance import InstanceState, StartPath
from tessera.node_agent.core.runtimes import Purpose
from tessera.node_agent.loops import agent
from tessera.program import Stop

READY, GONE = InstanceState.READY, InstanceState.GONE


async def settle(node: Any) -> None:
    """One pass, and what it began."""
    await node.agent.reconcile_once()
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.002)
            if node.starter.starting == 0 and not node.fleet.forking():
                return


async def test_a_provisional_instance_is_kept_until_it_expires(node: Any) -> None:
    await node.start("a", node.make_artifact(), expires_after_s=30.0)
    node.clock.move(29.9)
    await settle(node)
    assert node.table.get(InstanceId("a")).state is READY
    node.clock.move(0.2)
    await settle(node)
    await settle(node)
    assert node.table.get(InstanceId("a")).state is GONE


async def test_a_record_confirms_it_and_its_removal_ends_it(node: Any, make: Any) -> None:
    artifact = node.make_artifact()
    await node.start("a", artifact)
    node.records.desired = {InstanceId("a"): make.assignment("a", artifact=artifact)}
    await settle(node)
    node.clock.move(1000.0)
    await settle(node)
    assert node.table.get(InstanceId("a")).state is READY
    node.records.desired = {}
    await settle(node)
    await settle(node)
    assert node.table.get(InstanceId("a")).state is GONE


async def test_while_etcd_is_away_everything_is_kept(node: Any) -> None:
    await node.start("a", node.make_artifact(), expires_after_s=1.0)
    node.records.away = True  # what the view shows is old
    node.clock.move(1000.0)
    await settle(node)
    assert node.table.get(InstanceId("a")).state is READY
    node.records.desired = None  # never seen at all
    await settle(node)
    assert node.table.get(InstanceId("a")).state is READY
    node.records.desired, node.records.away = {}, False
    await settle(node)
    await settle(node)
    assert node.table.get(InstanceId("a")).state is GONE


async def test_a_view_that_lags_costs_nothing(node: Any, make: Any) -> None:
    """The watch has not shown the record yet, etcd itself has it."""
    artifact = node.make_artifact()
    await node.start("a", artifact, expires_after_s=1.0)
    node.clock.move(2.0)
    node.records.assignments = lambda: {}
    node.records.desired = {InstanceId("a"): make.assignment("a", artifact=artifact)}
    await settle(node)
    assert node.table.get(InstanceId("a")).state is READY
    assert not node.table.get(InstanceId("a")).provisional


async def test_an_assignment_without_an_instance_is_started_once(node: Any, make: Any) -> None:
    artifact = node.make_artifact()
    node.records.desired = {InstanceId("a"): make.assignment("a", artifact=artifact, start_path=StartPath.FORK)}
    await settle(node)
    await settle(node)
    assert node.table.get(InstanceId("a")).state is READY
    assert sum(len(runtime.loaded) for runtime in node.runtimes.live) == 1


async def test_what_an_earlier_agent_was_assigned_is_not_loaded_again(node: Any, make: Any) -> None:
    """Its generation has served. It shows as failed until its record is gone; nothing is started meanwhile."""
    node.records.desired = {InstanceId("a"): make.assignment("a", artifact=node.make_artifact())}
    await node.adoption.look_back()
    await settle(node)
    assert node.table.get(InstanceId("a")).state is InstanceState.FAILED
    node.clock.move(1e6)
    await settle(node)
    assert node.table.get(InstanceId("a")).state is InstanceState.FAILED
    assert not any(runtime.loaded for runtime in node.runtimes.live)
    node.records.desired = {}
    await settle(node)
    assert node.table.find(InstanceId("a")) is None


async def test_a_failed_generation_is_never_loaded_again(node: Any, make: Any) -> None:
    node.records.desired = {InstanceId("a"): make.assignment("a", artifact=make.digest(9))}  # the repository lacks it
    await settle(node)
    node.clock.move(1e6)
    await settle(node)
    assert node.table.get(InstanceId("a")).state is InstanceState.FAILED
    assert len([line for line in node.table.story(InstanceId("a")) if line.words.startswith("accepted")]) == 1
    node.records.desired = {}
    await settle(node)
    assert node.table.find(InstanceId("a")) is None


async def test_an_older_term_is_refused_also_after_a_restart(node: Any) -> None:
    artifact = node.make_artifact()
    await node.start("a", artifact, term=Term(1, 7))
    with pytest.raises(StaleTerm):
        await node.start("b", artifact, term=Term(1, 6))
    with pytest.raises(StaleTerm):
        await node.agent.stop_instance(Term(1, 6), InstanceId("a"))
    assert node.table.get(InstanceId("a")).state is READY
    assert node.table.find(InstanceId("b")) is None
    assert node.terms.load() == Term(1, 7)
    await node.agent.stop_instance(Term(1, 8), InstanceId("never-there"))
    assert node.terms.load() == Term(1, 8)  # a newer leader's order is not answered before its term is on disk
    await node.agent.observe_term(Term(1, 9))
    assert node.terms.load() == Term(1, 9)
    await node.agent.observe_term(Term(1, 8))  # an old stream: no error, no effect
    assert node.terms.load() == Term(1, 9)


async def test_a_term_that_cannot_be_made_durable_is_no_success(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(term: Term) -> None:
        raise FailedPrecondition("disk full")

    monkeypatch.setattr(node.terms, "save", full)
    with pytest.raises(FailedPrecondition, match="disk full"):
        await node.start("a", node.make_artifact())


async def test_a_file_that_makes_no_sense_stops_the_agent(node: Any) -> None:
    (node.folder / "term").write_text("{")
    with pytest.raises(FailedPrecondition, match="newest term cannot be read"):
        node.terms.load()


async def test_the_pool_holds_a_warm_runtime_and_is_refilled(node: Any) -> None:
    await settle(node)
    (warm,) = node.runtimes.live
    first = await node.start("a", node.make_artifact())
    assert (first.runtime_id, first.start_path) == (warm.hello.runtime_id, StartPath.BIND)
    await settle(node)
    assert len(node.runtimes.live) == 2


async def test_a_pool_that_cannot_be_filled_waits_and_says_so(node: Any) -> None:
    node.runtimes.fork_error = Unavailable("the zygote is gone")
    await node.agent.reconcile_once()
    await node.behind()
    assert node.runtimes.all == {}
    assert node.fleet.forking() == {"ort": 1}  # a pause
    node.runtimes.fork_error = None
    node.clock.move(2.0)
    await settle(node)
    assert len(node.runtimes.live) == 1


async def test_a_pool_that_keeps_failing_is_tried_ever_more_rarely(node: Any) -> None:
    node.runtimes.fork_error = Unavailable("no engine answers")
    at_s = []
    for second in range(64):
        if "ort" not in node.fleet.forking():
            at_s.append(second)
            with pytest.raises(Unavailable):
                await node.fleet.create("ort", Purpose.SHARED)
        node.clock.move(1.0)
    assert at_s == [0, 1, 3, 7, 15, 31, 61]
    node.runtimes.fork_error = None
    await node.fleet.create("ort", Purpose.SHARED)
    node.runtimes.fork_error = Unavailable("no engine answers")
    with pytest.raises(Unavailable):
        await node.fleet.create("ort", Purpose.SHARED)
    node.clock.move(1.0)
    assert "ort" not in node.fleet.forking(), "a success has ended the series"


async def test_a_restarted_agent_adopts_with_the_same_generation(node: Any, tmp_path: Any) -> None:
    artifact = node.make_artifact()
    before = await node.start("a", artifact)
    await node.behind()  # its note is written by then
    runtime = node.runtimes.live[0]
    holds = node.store.holders()[runtime.hello.runtime_id]
    node.store.unpin(runtime.hello.runtime_id, None)  # a new process knows no holds
    restarted = type(node)(node.folder, node.agent._tasks, node.store, node.runtimes, node.clock)
    await restarted.adoption.adopt()
    after = restarted.table.get(InstanceId("a"))
    same = ("generation", "variant", "artifact", "runtime_id", "shared_bytes", "max_batch", "start_path", "fetched", "private_bytes")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    assert restarted.store.holders()[runtime.hello.runtime_id] == holds
    assert restarted.records.published[InstanceId("a")].generation == before.generation
    assert after.provisional  # until its record is seen, or for a grace time
    assert (await restarted.start("a", artifact)).generation == before.generation


async def test_a_runtime_that_ends_while_others_are_waited_for_leaves_no_instance(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.start("a", node.make_artifact())
    (runtime,) = node.runtimes.live

    async def adopt() -> tuple[Any, ...]:
        node.runtimes.all[runtime.hello.runtime_id].kill()  # another one's load is waited for meanwhile
        return (runtime,)

    restarted = type(node)(node.folder, node.agent._tasks, node.store, node.runtimes, node.clock)
    monkeypatch.setattr(node.runtimes, "adopt", adopt)
    await restarted.adoption.adopt()
    assert list(restarted.table) == []
    assert restarted.records.published == {}


async def adopted_with_one_that_drains(node: Any) -> Any:
    """The next agent, which adopts a runtime with instance `a`, while instance `b` of another artifact drains in it."""
    for name, seed in (("a", 1), ("b", 2)):
        await node.start(name, node.make_artifact(seed))
    (runtime,) = node.runtimes.live
    del runtime.loaded[InstanceId("b")]
    node.store.unpin(runtime.hello.runtime_id, None)  # a new process knows no holds
    restarted = type(node)(node.folder, node.agent._tasks, node.store, node.runtimes, node.clock)
    await restarted.adoption.adopt()
    return restarted


async def sampled(node: Any, runtime_id: RuntimeId) -> frozenset[Digest]:
    """What is pinned for a runtime after the next sample."""
    node.clock.move(agent.SAMPLE_S)
    await node.agent.reconcile_once()
    async with asyncio.timeout(5):
        while len(node.agent._tasks):  # noqa: ASYNC110 - tasks that end by themselves
            await asyncio.sleep(0.001)
    return node.store.holders()[runtime_id]


async def test_what_an_adopted_runtime_lets_go_of_is_unpinned_with_the_next_sample(node: Any) -> None:
    restarted = await adopted_with_one_that_drains(node)
    (runtime,) = node.runtimes.live
    a = restarted.table.get(InstanceId("a")).blobs
    draining = runtime.mapped[InstanceId("b")]
    assert await sampled(restarted, runtime.hello.runtime_id) == a | draining
    del runtime.mapped[InstanceId("b")]
    assert await sampled(restarted, runtime.hello.runtime_id) == a
    assert (await restarted.inspector.check(deep=False)).findings == ()


async def test_what_is_pinned_for_a_start_while_a_runtime_is_asked_stays(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    restarted = await adopted_with_one_that_drains(node)
    (runtime,) = node.runtimes.live
    del runtime.mapped[InstanceId("b")]
    declared, asked, go_on = await runtime.declare(), asyncio.Event(), asyncio.Event()

    async def declare() -> Any:
        asked.set()
        await go_on.wait()
        return declared

    monkeypatch.setattr(runtime, "declare", declare)
    asking = asyncio.ensure_future(restarted.fleet.unpin_unneeded())
    await asked.wait()
    node.runtimes.gate.clear()
    start = asyncio.ensure_future(restarted.start("c", node.make_artifact(2)))
    while not node.runtimes.early[2:]:  # noqa: ASYNC110 - a list that fills
        await asyncio.sleep(0)
    go_on.set()
    await asking
    node.runtimes.gate.set()
    assert (await start).runtime_id == runtime.hello.runtime_id  # which looks whether all of it is pinned


async def test_what_was_pinned_while_a_runtime_was_asked_is_left_to_the_next_time(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    restarted = await adopted_with_one_that_drains(node)
    (runtime,) = node.runtimes.live
    ended = runtime.mapped.pop(InstanceId("b"))
    declared, runtime_id = await runtime.declare(), runtime.hello.runtime_id

    async def declare() -> Any:
        restarted.fleet.pin(runtime_id, ended)  # for an instance that has failed by now, and which the runtime has not let go of
        return declared

    with monkeypatch.context() as patched:
        patched.setattr(runtime, "declare", declare)
        await restarted.fleet.unpin_unneeded()
    assert ended <= node.store.holders()[runtime_id]
    assert await sampled(restarted, runtime_id) == restarted.table.get(InstanceId("a")).blobs


async def test_a_measuring_runtime_is_not_adopted(node: Any) -> None:
    await node.runtimes.create("ort", RuntimeId("measure-ort-37a8ee-01"), 1)
    await node.adoption.adopt()
    await node.behind()
    assert node.runtimes.live == []


async def test_the_summary_shows_instances_runtimes_and_store(node: Any) -> None:
    instance = await node.start("a", node.make_artifact())
    await settle(node)
    summary = await node.agent.summary(refresh=True)
    (shown,) = summary.instances
    assert (shown.instance.served, shown.instance.idle_s, shown.pid) == (7, 1.5, node.runtimes.live[0].hello.pid)
    by_id = {item.runtime_id: item for item in summary.runtimes}
    assert (by_id[instance.runtime_id].trust_domain, by_id[instance.runtime_id].instances) == ("default", 1)
    (warm,) = [item for item in summary.runtimes if item.runtime_id != instance.runtime_id]
    assert (warm.trust_domain, warm.instances, warm.private_bytes) == ("default", 0, 5000)
    assert summary.stores["default"].used_bytes == sum(node.store.digests().values())


async def test_the_graceful_end_drains_everything(node: Any) -> None:
    artifact = node.make_artifact()
    for name in "ab":
        await node.start(name, artifact)
    (runtime,) = node.runtimes.live
    await node.agent.end(250)
    assert runtime.unloads == [("a", 250), ("b", 250)]
    assert {found.state for found in node.table} == {GONE}
    assert node.runtimes.live == []


async def test_the_graceful_end_does_not_wait_for_a_runtime_that_does_not_unload(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "END_S", 0.5)
    stuck, fine = await node.start("a", node.make_artifact(1)), await node.start("b", node.make_artifact(2))
    (runtime,) = node.runtimes.live
    unload = runtime.unload

    async def never(instance_id: InstanceId, drain_ms: int) -> Any:
        if instance_id == stuck.instance_id:
            await asyncio.Event().wait()
        return await unload(instance_id, drain_ms)

    monkeypatch.setattr(runtime, "unload", never)
    async with asyncio.timeout(5):
        await node.agent.end(0)
    assert node.runtimes.live == []
    assert node.table.get(fine.instance_id).state is GONE
    await settle(node)
    assert not node.table.get(stuck.instance_id).alive


async def test_the_loop_ends_with_the_program(node: Any) -> None:
    stop = Stop()
    running = asyncio.gather(node.agent.run(stop))
    async with asyncio.timeout(5):
        while not node.runtimes.live:  # noqa: ASYNC110 - a list that fills
            await asyncio.sleep(0.001)
    stop.request("test")
    async with asyncio.timeout(3):
        await running
    assert len(node.runtimes.live) == 1


async def test_a_runtime_that_is_being_forked_when_the_agent_stops_does_not_stay(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go = asyncio.Event(), asyncio.Event()
    fork = node.runtimes.create

    async def slowly(*arguments: Any) -> Any:
        asked.set()
        await go.wait()
        return await fork(*arguments)

    monkeypatch.setattr(node.runtimes, "create", slowly)
    node.fleet.refill("ort")
    await asked.wait()
    ending = asyncio.get_running_loop().create_task(node.agent.end(0))
    await asyncio.sleep(0.01)
    assert not ending.done(), "it waits for what is on its way"
    go.set()
    await ending
    assert node.runtimes.all
    assert not list(node.runtimes.live)
    with pytest.raises(Unavailable, match="is stopping"):
        await node.fleet.create("ort", Purpose.SHARED)
