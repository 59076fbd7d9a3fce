"""Two trust domains on one node: each order, assignment and adoption goes to its own, and what happens in one leaves the other alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import InstanceId, TrustDomain, VariantKey
from tessera.domain.instance import InstanceState, StartPath
from tessera.node_agent.server import NodeAgentServer
from tessera.program import Stop, Tasks
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing import VirtualClock

OTHER = TrustDomain("other")


@pytest.fixture
async def two(tmp_path: Path, node: Any) -> AsyncIterator[Any]:
    """The node of the other tests once more, with a second domain beside the first."""
    stop, clock = Stop(), VirtualClock()
    folder = tmp_path / "two"
    folder.mkdir()
    async with Tasks(stop) as tasks:
        with LocalTensorStore(folder / "a", 1 << 20, clock) as first, LocalTensorStore(folder / "b", 1 << 20, clock) as second:
            runtimes = type(node.runtimes)
            found = type(node)(folder, tasks, first, runtimes(first), clock, {OTHER: (second, runtimes(second))})
            yield found
    assert stop.error is None


def of_other(make: Any, model: str = "m") -> VariantKey:
    return replace(make.variant(model), trust_domain=OTHER)


async def test_an_order_goes_to_the_store_and_the_runtimes_of_its_domain(two: Any, make: Any) -> None:
    artifact = two.make_artifact()
    first = await two.start("a", artifact)
    second = await two.start("b", artifact, variant=of_other(make))
    other = two.others[OTHER]
    assert first.blobs == second.blobs
    assert dict(two.store.digests()) == dict(other.store.digests())  # brought in for each
    assert two.fleet.find(second.runtime_id) is None
    assert other.fleet.find(first.runtime_id) is None
    assert set(two.store.holders()) == {first.runtime_id}
    assert set(other.store.holders()) == {second.runtime_id}
    await two.agent.stop_instance(two.order("a").term, InstanceId("a"))
    assert two.table.get(InstanceId("b")).state is InstanceState.READY
    assert other.store.holders()[second.runtime_id] == second.blobs


async def test_an_order_for_a_domain_that_is_not_here_is_refused_with_those_that_are(two: Any, make: Any) -> None:
    strange = replace(make.variant(), trust_domain=TrustDomain("third"))
    with pytest.raises(FailedPrecondition, match="no store of trust domain 'third'; it has default, other"):
        await two.start("a", two.make_artifact(), variant=strange)
    assert len(two.table) == 0


async def test_a_corrupted_blob_of_one_domain_withdraws_nothing_of_another(two: Any, make: Any) -> None:
    """The same digest there is another file, and sound."""
    artifact = two.make_artifact()
    await two.start("a", artifact)
    await two.start("b", artifact, variant=of_other(make))
    victim = next(iter(two.table.get(InstanceId("a")).blobs - {artifact}))
    two.corrupt(victim)
    two.runtimes.faults["m"] = ["corrupt"]
    await two.start("c", artifact)
    states = {name: two.table.get(InstanceId(name)).state for name in ("a", "b", "c")}
    assert states == {"a": InstanceState.FAILED, "b": InstanceState.READY, "c": InstanceState.READY}
    assert (two.store.status().quarantined, two.others[OTHER].store.status().quarantined) == (1, 0)


async def test_assignments_of_each_domain_start_and_stop_in_it(two: Any, make: Any) -> None:
    artifact = two.make_artifact()
    mine, theirs = (
        make.assignment(name, artifact=artifact, variant=variant) for name, variant in (("a", make.variant()), ("b", of_other(make)))
    )
    two.records.desired = {record.instance_id: record for record in (mine, theirs)}
    await two.agent.reconcile_once()
    for name, domain in (("a", "default"), ("b", OTHER)):
        await two.domains.get(domain).starter.ready(InstanceId(name), 5.0)
    assert {record.variant.trust_domain for record in two.records.published.values()} <= {"default", OTHER}
    two.records.desired = {mine.instance_id: mine}
    two.table.note(InstanceId("b"), expires_at_s=None)
    await two.agent.reconcile_once()
    await two.others[OTHER].starter.stop(InstanceId("b"), "waits for the stop above")
    assert two.table.get(InstanceId("a")).state is InstanceState.READY
    assert not two.table.get(InstanceId("b")).alive


async def test_only_the_first_domain_has_warm_runtimes_before_its_first_start(two: Any, make: Any) -> None:
    other = two.others[OTHER]
    for domain in two.domains:
        await domain.prepare()
    assert (two.runtimes.prepared, other.runtimes.prepared) == ({"ort"}, set())
    assert (two.domains.get("default").pooled, other.pooled) == (("ort",), ())
    await two.start("b", two.make_artifact(), variant=of_other(make))
    assert other.pooled == ("ort",)


async def test_adopted_runtimes_keep_their_domain(two: Any, make: Any, tmp_path: Path) -> None:
    artifact = two.make_artifact()
    await two.start("a", artifact)
    second = await two.start("b", artifact, variant=of_other(make), start_path=StartPath.FORK)
    other = two.others[OTHER]
    async with Tasks(Stop()) as tasks:
        again = type(two)(two.folder, tasks, two.store, two.runtimes, two.clock, {OTHER: (other.store, other.runtimes)})
        await again.adoption.adopt()
        assert {item.instance_id: item.variant.trust_domain for item in again.table} == {"a": "default", "b": OTHER}
        assert again.others[OTHER].fleet.find(second.runtime_id) is not None


async def test_a_status_for_one_domain_says_nothing_of_another(two: Any, make: Any) -> None:
    await two.start("a", two.make_artifact(1))
    await two.start("b", two.make_artifact(2), variant=of_other(make, "theirs"))
    server = NodeAgentServer(two.agent)
    status = (await server.GetStatus(node_pb2.GetStatusRequest(trust_domain=OTHER), None)).status
    assert [(store.trust_domain, len(store.digests_added)) for store in status.stores] == [(OTHER, len(two.others[OTHER].store.digests()))]
    assert {item.instance_id for item in status.instances} == {"b"}
    assert {item.trust_domain for item in status.runtimes} == {OTHER}
    everything = (await server.GetStatus(node_pb2.GetStatusRequest(), None)).status
    assert {store.trust_domain: store.files for store in everything.stores} == {"default": 4, OTHER: 4}
