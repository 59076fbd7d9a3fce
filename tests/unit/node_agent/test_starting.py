"""Starts over fake runtimes, a real store and a real repository."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from tessera.domain.errors import (
    AlreadyExists,
    DataCorrupted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from tessera.domain.ids import Digest, InstanceId, NodeId, Term, TrustDomain
from tessera.domain.instance import InstanceState, Stage, StartPath
from tessera.domain.source import Source
from tessera.node_agent.core.demand import HORIZON_S
from tessera.node_agent.core.runtimes import Purpose
from tessera.repository.fetch import Fetcher
from tessera.tensorstore.artifact import digest_of

FAILED, READY = InstanceState.FAILED, InstanceState.READY


async def test_a_start_fetches_forks_holds_and_loads(node: Any) -> None:
    artifact = node.make_artifact()
    instance = await node.start("a", artifact)
    assert (instance.state, instance.start_path, instance.fetched, instance.max_batch) == (READY, StartPath.FORK, True, 8)
    assert [time.stage for time in instance.stages] == [Stage.FETCH, Stage.FORK, Stage.MAP, Stage.LOAD]
    assert instance.private_bytes == 1000
    assert instance.shared_bytes == sum(node.store.digests().values())
    assert node.store.holders()[instance.runtime_id] == frozenset(node.store.digests())
    assert node.records.published[InstanceId("a")].generation == instance.generation
    words = [line.words.split(":")[0] for line in node.table.story(InstanceId("a"))]
    assert words == [
        "accepted", "fetching", "17119 bytes fetched, 0 of them from other nodes", f"fork into {instance.runtime_id}", "mapped", "loading",
        "ready",
    ]  # fmt: skip


async def test_the_next_ones_bind_into_the_same_runtime_until_it_is_full(node: Any) -> None:
    artifact = node.make_artifact()
    started = [await node.start(name, artifact) for name in "abcde"]
    assert [found.start_path for found in started] == [StartPath.FORK, *[StartPath.BIND] * 3, StartPath.FORK]
    assert len({found.runtime_id for found in started[:4]}) == 1
    assert not started[1].fetched


async def test_only_starts_that_take_an_empty_runtime_are_asked_of_the_pool(node: Any) -> None:
    artifact = node.make_artifact()
    for name in "abcd":  # one forks, three go beside it
        await node.start(name, artifact)
    (demand,) = node.fleet.demands(["ort"])
    assert demand.takes_per_s * HORIZON_S == pytest.approx(1.0, rel=0.01)
    await node.start("e", artifact)  # the first one is full
    assert node.fleet.demands(["ort"])[0].takes_per_s * HORIZON_S == pytest.approx(2.0, rel=0.01)
    await node.fleet.create("ort", Purpose.SHARED)
    await node.fleet.refresh(0.0)
    assert node.fleet.demands(["ort"])[0].runtime_bytes == 5000, "as the empty one says"


async def test_concurrent_starts_of_one_variant_share_fetch_and_fork(node: Any) -> None:
    artifact = node.make_artifact()
    started = await asyncio.gather(*[node.start(name, artifact) for name in "abcd"])
    assert len(node.runtimes.all) == 1
    assert node.store.status().ingested_bytes == sum(node.store.digests().values())
    assert len({found.generation for found in started}) == 4


async def test_the_same_order_again_answers_for_the_instance_that_exists(node: Any) -> None:
    artifact = node.make_artifact()
    first, second = await asyncio.gather(node.start("a", artifact), node.start("a", artifact))
    third = await node.start("a", artifact)
    assert first == second == third
    assert len(node.runtimes.live[0].loaded) == 1


async def test_what_an_id_or_a_generation_names_stays(node: Any) -> None:
    artifact = node.make_artifact()
    first = await node.start("a", artifact)
    with pytest.raises(AlreadyExists, match="'a' is here with generation"):
        await node.start("a", artifact, generation=1)
    with pytest.raises(AlreadyExists, match="belongs to instance 'a'"):
        await node.start("b", artifact, generation=first.generation)


async def test_a_plan_that_says_fork_gets_a_new_runtime(node: Any) -> None:
    artifact = node.make_artifact()
    first, second = await node.start("a", artifact), await node.start("b", artifact, start_path=StartPath.FORK)
    assert (second.start_path, second.runtime_id != first.runtime_id) == (StartPath.FORK, True)


async def test_where_runtimes_are_containers_a_new_one_is_called_so(node: Any) -> None:
    node.runtimes.start_path = StartPath.CONTAINER
    artifact = node.make_artifact()
    first, second = await node.start("a", artifact), await node.start("b", artifact)
    third = await node.start("c", artifact, start_path=StartPath.CONTAINER)
    assert [found.start_path for found in (first, second, third)] == [StartPath.CONTAINER, StartPath.BIND, StartPath.CONTAINER]
    assert [time.stage for time in first.stages] == [Stage.FETCH, Stage.CONTAINER, Stage.MAP, Stage.LOAD]


async def test_identity_needs_no_artifact_and_nothing_else_may_do_without(node: Any, make: Any) -> None:
    assert (await node.start("a", None, variant=make.variant("identity", "identity-any"))).state is READY
    with pytest.raises(InvalidInput, match="artifact_digest"):
        await node.start("b", None)


async def test_another_trust_domain_is_refused_before_anything_is_made(node: Any, make: Any) -> None:
    from dataclasses import replace

    with pytest.raises(FailedPrecondition, match="of trust domain 'other'"):
        await node.start("a", node.make_artifact(), variant=replace(make.variant(), trust_domain=TrustDomain("other")))
    assert len(node.table) == 0


async def test_what_the_repository_lacks_fails_the_instance(node: Any, make: Any) -> None:
    with pytest.raises(NotFound):
        await node.start("a", make.digest(9))
    assert node.table.get(InstanceId("a")).state is FAILED
    with pytest.raises(NotFound):  # the same order again has the same answer
        await node.start("a", make.digest(9))


async def test_the_built_in_model_starts_though_its_artifact_is_reclaimed_just_then(node: Any, make: Any) -> None:
    variant = make.variant("identity", "identity-any")
    node.starter.begin(make.instance("a", variant=variant, artifact=None), "test")
    assert len(node.store.shrink(0)) == 1
    assert (await node.starter.ready(InstanceId("a"), 5.0)).state is READY


async def in_time(node: Any, waiting: Any) -> Any:
    """Moves the clock on while it waits."""
    task = asyncio.ensure_future(waiting)
    while not task.done():
        await asyncio.sleep(0.005)
        node.clock.move(0.25)
    return await task


async def test_a_start_that_does_not_fit_says_what_it_needs_and_which_models_are_in_the_way(node: Any, make: Any) -> None:
    await node.start("a", node.make_artifact(1, tensors=80), variant=make.variant("bert"))
    await node.start("b", node.make_artifact(2, tensors=20), variant=make.variant("resnet"))
    node.runtimes.idle_s = 0.0
    with pytest.raises(ResourceExhausted) as refused:
        await in_time(node, node.start("c", node.make_artifact(3, tensors=60), variant=make.variant("llm")))
    message = refused.value.message
    assert message.startswith("llm@1/ort-fp32 does not fit into the node's store: ")
    assert "bytes needed, budget 1048576, used" in message
    assert f"in use by {make.variant('bert')} (instance a, ready): 6" in message
    assert message.index("bert@1") < message.index("resnet@1")  # the largest first
    assert node.table.get(InstanceId("c")).state is FAILED


async def test_a_model_larger_than_the_store_says_so(node: Any, make: Any) -> None:
    with pytest.raises(ResourceExhausted, match=r"budget 1048576, which is \d+ more than all of it, .*in use by no instance"):
        await in_time(node, node.start("a", node.make_artifact(1, tensors=130)))


async def test_a_full_file_system_within_the_budget_is_given_a_moment(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to evict: something that no budget counts takes the space."""
    full, write = True, os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    artifact = node.make_artifact()
    monkeypatch.setattr("tessera.tensorstore.local.writer.os.pwrite", pwrite)
    start = asyncio.ensure_future(node.start("a", artifact))
    await asyncio.wait([start], timeout=0.5)
    full = False
    found = await in_time(node, start)
    assert (found.state, found.fetched, found.fetched_bytes) == (READY, True, 0), "its fetch was waiting, too"
    found = await node.start("b", node.make_artifact(2))
    assert found.fetched_bytes > 0


async def test_a_budget_that_ends_leaves_the_start_going(node: Any) -> None:
    artifact = node.make_artifact()
    node.runtimes.gate.clear()
    with pytest.raises(DeadlineExceeded, match="its start goes on"):
        await node.start("a", artifact, budget_s=0.05)
    node.runtimes.gate.set()
    assert (await node.start("a", artifact)).state is READY


async def test_a_refused_load_leaves_nothing_held(node: Any) -> None:
    artifact = node.make_artifact()
    node.runtimes.faults["m"] = [Internal("graph does not fit")]
    with pytest.raises(Internal, match="graph does not fit"):
        await node.start("a", artifact)
    (runtime,) = node.runtimes.live
    assert node.store.holders().get(runtime.hello.runtime_id, frozenset()) == frozenset()
    assert (await node.start("b", artifact)).runtime_id == runtime.hello.runtime_id  # and the runtime is as good as before


async def test_a_lost_runtime_fails_its_instances_and_frees_its_holds(node: Any) -> None:
    artifact = node.make_artifact()
    for name in "ab":
        await node.start(name, artifact)
    runtime = node.runtimes.live[0]
    runtime.kill()
    await asyncio.sleep(0.01)
    assert {found.state for found in node.table} == {FAILED}
    assert node.records.published == {}
    assert runtime.hello.runtime_id not in node.store.holders()
    assert (await node.start("c", artifact)).state is READY  # served again at once


async def test_what_was_lost_is_failed_whatever_comes_of_blaming_somebody(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*arguments: Any) -> None:
        raise Internal("nobody can be blamed")

    artifact = node.make_artifact()
    for name in "ab":
        await node.start(name, artifact)
    (runtime,) = node.runtimes.live
    monkeypatch.setattr(node.poison, "runtime_lost", unable)
    runtime.alive = False
    with pytest.raises(Internal, match="nobody can be blamed"):
        node.runtimes.ended(runtime.hello.runtime_id)
    assert {found.state for found in node.table} == {FAILED}
    assert node.records.published == {}
    assert runtime.hello.runtime_id not in node.store.holders()


async def test_why_a_runtime_ended_is_told_when_it_is_known(node: Any) -> None:
    artifact = node.make_artifact()
    await node.start("a", artifact)
    (runtime,) = node.runtimes.live
    runtime.ended_by = "out of memory"
    runtime.kill()
    await asyncio.sleep(0.01)
    found = node.table.get(InstanceId("a"))
    assert (
        str(found.error)
        == f"runtime {runtime.hello.runtime_id} (pid {runtime.hello.pid}) ended that held variant {found.variant}: out of memory"
    )
    assert node.table.story(InstanceId("a"))[-1].words == "its runtime ended: out of memory"


async def test_a_start_fails_with_the_cause_that_is_found_out_later(node: Any) -> None:
    cause = asyncio.Event()

    async def slowly() -> str:
        await cause.wait()
        return "exit code 3"

    node.runtimes.faults["m"] = ["die"]
    node.runtimes.gate.clear()
    starting = asyncio.get_running_loop().create_task(node.start("a", node.make_artifact()))
    while not node.runtimes.live:  # noqa: ASYNC110 - a list that fills
        await asyncio.sleep(0.001)
    node.runtimes.live[0].cause = slowly
    node.runtimes.gate.set()
    await asyncio.sleep(0.02)
    assert node.table.get(InstanceId("a")).state is FAILED, "it has failed at once"
    assert not starting.done(), "the answer waits for the reason"
    cause.set()
    with pytest.raises(Unavailable, match=r"ended while it loaded variant .*: exit code 3"):
        await starting


async def test_a_variant_that_kills_its_runtime_is_isolated_and_slowed_down_the_others_are_not(node: Any, make: Any) -> None:
    artifact, good = node.make_artifact(1), make.variant("good")
    neighbour = await node.start("n", artifact, variant=good)
    node.runtimes.faults["bad"] = ["die", "die"]
    bad = make.variant("bad")
    with pytest.raises(Unavailable, match="ended while it loaded variant bad@1/ort-fp32"):
        await node.start("a", artifact, variant=bad)
    assert node.table.get(neighbour.instance_id).state is FAILED
    with pytest.raises(Unavailable, match=r"not tried again for 1\.0 s"):
        await node.start("b", artifact, variant=bad)
    again = await node.start("n2", artifact, variant=good)  # at once, and shared
    assert again.runtime_id.startswith("rt-")
    node.clock.move(1.0)
    with pytest.raises(Unavailable):
        await node.start("c", artifact, variant=bad)
    assert node.table.get(again.instance_id).state is READY  # it died alone this time
    node.clock.move(2.0)
    healed = await node.start("d", artifact, variant=bad)
    assert healed.runtime_id.startswith("own-")


async def test_a_load_that_hangs_costs_its_runtime(node: Any) -> None:
    node.runtimes.faults["m"] = ["hang"]
    with pytest.raises(Unavailable, match="killed by the node agent"):
        await node.start("a", node.make_artifact())
    assert node.runtimes.live == []
    assert node.table.get(InstanceId("a")).state is FAILED


async def test_a_corrupted_blob_is_quarantined_fetched_again_and_never_served(node: Any) -> None:
    artifact = node.make_artifact(1, tensors=3)
    first = await node.start("a", artifact)
    other = await node.start("o", node.make_artifact(2))
    victim = sorted(first.blobs - {artifact})[0]
    node.corrupt(victim)
    second = await node.start("b", artifact)
    assert (second.state, second.fetched) == (READY, True)
    assert second.runtime_id != first.runtime_id  # the first one's mapping is of the corrupted file
    assert node.store.verify(victim)
    assert node.store.status().quarantined == 1
    failed = node.table.get(first.instance_id)
    assert (failed.state, type(failed.error)) == (FAILED, DataCorrupted)
    await asyncio.sleep(0.05)
    assert list(node.runtimes.all[first.runtime_id].loaded) == ["o"]  # what maps other bytes goes on
    assert node.table.get(other.instance_id).state is READY
    third = await node.start("c", node.make_artifact(3))
    assert third.runtime_id == second.runtime_id  # nothing new goes into the tainted one


async def test_who_is_gone_from_its_runtime_when_it_is_withdrawn_costs_nobody_the_runtime(node: Any) -> None:
    """It has become another one, say, which its agent is about to hear."""
    artifact = node.make_artifact(1, tensors=3)
    first = await node.start("a", artifact)
    other = await node.start("o", node.make_artifact(2))
    runtime = node.runtimes.all[first.runtime_id]
    del runtime.loaded["a"], runtime.mapped["a"]
    node.corrupt(sorted(first.blobs - {artifact})[0])
    await node.start("b", artifact)
    await asyncio.sleep(0.05)
    assert (runtime.alive, runtime.unloads) == (True, [("a", 0)])
    assert node.table.get(other.instance_id).state is READY
    assert node.store.holders()[first.runtime_id] == other.blobs


async def test_one_that_drains_on_corrupted_bytes_costs_its_runtime(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runtime says of it that it is not there, too, and answers what waits."""
    artifact = node.make_artifact(1, tensors=3)
    first = await node.start("a", artifact)
    runtime, over = node.runtimes.all[first.runtime_id], asyncio.Event()

    async def unload(instance_id: InstanceId, drain_ms: int) -> frozenset[Digest]:
        if drain_ms:
            await over.wait()
        raise NotFound(f"instance {instance_id}")

    monkeypatch.setattr(runtime, "unload", unload)
    stopping = asyncio.ensure_future(node.starter.stop(InstanceId("a"), "unwanted", drain_ms=5000))
    await asyncio.sleep(0)
    assert node.table.get(InstanceId("a")).state is InstanceState.DRAINING
    node.corrupt(sorted(first.blobs - {artifact})[0])
    second = await node.start("b", artifact)
    await asyncio.sleep(0.05)
    assert (runtime.alive, second.runtime_id != first.runtime_id) == (False, True)
    over.set()
    await stopping


async def test_what_takes_the_place_of_corrupted_bytes_may_come_from_neighbours_that_nobody_named(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []
    fetch_artifact = Fetcher.fetch_artifact

    def seen(self: Any, *args: Any) -> Any:
        asked.append((args[4], args[5]))
        return fetch_artifact(self, *args[:4])

    neighbour = Source(NodeId("n2"), "127.0.0.1:1")
    monkeypatch.setattr(Fetcher, "fetch_artifact", seen)
    monkeypatch.setattr(node.larder, "_neighbours", lambda: (neighbour,))
    artifact = node.make_artifact(1, tensors=3)
    first = await node.start("a", artifact)
    node.corrupt(sorted(first.blobs - {artifact})[0])
    second = await node.start("b", artifact)
    assert second.fetched
    assert asked == [((), ()), ((), (neighbour,))], "the leader named none, for the bytes were there"


async def test_of_two_starts_that_meet_the_same_corrupted_blob_one_replaces_it_for_both(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = node.make_artifact()
    first = await node.start("a", artifact)
    victim = sorted(first.blobs - {artifact})[0]
    node.corrupt(victim)
    found: list[frozenset[str]] = []
    corrupted = node.larder.corrupted

    async def looked(load: Any) -> frozenset[str]:
        """The second one knows what it saw only when the first one is ready."""
        seen = await corrupted(load)
        found.append(seen)
        while len(found) == 2 and not any(node.table.get(InstanceId(name)).state is READY for name in "bc"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return seen

    monkeypatch.setattr(node.larder, "corrupted", looked)
    node.runtimes.gate.clear()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        starts = [group.create_task(node.start(name, artifact)) for name in "bc"]
        while len(node.runtimes.early) < 3:  # noqa: ASYNC110 - both are about to look at the bytes
            await asyncio.sleep(0.005)
        node.runtimes.gate.set()
    assert [start.result().state for start in starts] == [READY] * 2
    assert [node.table.get(InstanceId(name)).state for name in "abc"] == [FAILED, READY, READY]
    assert found == [{victim}, frozenset()]
    assert digest_of((node.store.root / "quarantine" / victim).read_bytes()) != victim, "what is kept is the evidence"
    live = {runtime.hello.runtime_id for runtime in node.runtimes.live}
    assert all(victim in node.store.holders()[start.result().runtime_id] for start in starts)
    assert {start.result().runtime_id for start in starts} <= live


async def test_what_another_start_has_quarantined_is_fetched_and_not_quarantined(node: Any) -> None:
    artifact = node.make_artifact()
    first = await node.start("a", artifact)
    victim = sorted(first.blobs - {artifact})[0]
    node.runtimes.faults["m"] = [DataCorrupted("blob x")]
    node.runtimes.gate.clear()
    starting = asyncio.create_task(node.start("b", artifact))
    while len(node.runtimes.early) < 2:  # noqa: ASYNC110 - it holds everything, and is told to load it
        await asyncio.sleep(0.005)
    node.store.quarantine(victim)
    node.runtimes.gate.set()
    second = await starting
    assert (second.state, second.fetched) == (READY, True)
    assert victim in node.store.holders()[second.runtime_id]
    assert node.table.get(first.instance_id).state is READY, "nothing was found that it maps"


async def test_a_runtime_that_met_corrupted_bytes_is_not_tried_again(node: Any) -> None:
    artifact = node.make_artifact()
    first = await node.start("a", artifact)
    await node.agent.stop_instance(Term(1, 5), first.instance_id)
    node.corrupt(sorted(first.blobs - {artifact})[0])
    second = await node.start("b", artifact)
    assert second.runtime_id != first.runtime_id
    await node.agent.reconcile_once()
    await asyncio.sleep(0.01)
    assert first.runtime_id not in {runtime.hello.runtime_id for runtime in node.runtimes.live}  # empty and tainted: it goes


async def test_corruption_in_the_repository_is_an_error_and_is_not_stored(node: Any, make: Any) -> None:
    artifact = node.make_artifact()
    node.runtimes.faults["m"] = [DataCorrupted("blob x")] * 2
    with pytest.raises(DataCorrupted):  # the store's bytes are sound and sealed again: one more try, and no third
        await node.start("a", artifact)
    assert node.store.status().quarantined == 0
    node.runtimes.faults["m"] = [DataCorrupted("blob x")]
    assert (await node.start("b", artifact)).state == "ready"
