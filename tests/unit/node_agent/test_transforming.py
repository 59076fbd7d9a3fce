"""Starts out of an idle instance: it ends when the other one is there, and is as it was when there is none."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.errors import Conflict, DataCorrupted, FailedPrecondition, Internal, NotFound, ResourceExhausted
from tessera.domain.ids import Digest, InstanceId
from tessera.domain.instance import InstanceState, Stage, StartPath
from tessera.domain.records import AssignmentRecord
from tessera.domain.signature import Signature, TensorSpec
from tessera.node_agent.core.table import accepted
from tessera.node_agent.loops import transforming
from tessera.policy.transform.group import GroupPlanner
from tessera.policy.transform.structure import Structure
from tessera.tensorstore.artifact import encode

GONE, FAILED, READY = InstanceState.GONE, InstanceState.FAILED, InstanceState.READY
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))
TRANSFORM = StartPath.TRANSFORM


def a_model(node: Any, layers: int, seed: int = 1, graph: bytes | None = None) -> Digest:
    """A chain of so many products with a tensor each."""
    refs = []
    for number in range(layers):
        data = bytes([seed, number]) * 8192
        refs.append(TensorRef(f"t{number}", "FP32", (4096,), node.repository.put_bytes(data), len(data)))
    nodes = [["aten.mul.Tensor", [{"slot": 0 if not at else layers + at}, {"slot": 1 + at}], {}, layers + 1 + at] for at in range(layers)]
    program = {
        "format": 1, "dialect": "aten", "slots": 2 * layers + 1, "inputs": [{"name": "x", "slot": 0}], "nodes": nodes,
        "tensors": [{"name": ref.slot, "slot": 1 + at, "dtype": "FP32", "shape": [4096]} for at, ref in enumerate(refs)],
        "outputs": [{"name": "y", "slot": 2 * layers}],
    }  # fmt: skip
    data = json.dumps(program).encode() if graph is None else graph
    blob = Blob(node.repository.put_bytes(data), len(data))
    return Digest(node.repository.put_bytes(encode(Artifact("aten", "fp32", "aten", blob, None, tuple(refs), SIGNATURE, None, 8))))


async def become(node: Any, name: str, artifact: Digest, donor: str, **fields: Any) -> Any:
    return await node.start(name, artifact, start_path=TRANSFORM, donor=InstanceId(donor), **fields)


async def test_an_instance_is_made_of_another_one_in_its_runtime(node: Any) -> None:
    short, long = a_model(node, 2), a_model(node, 3, seed=2)
    donor = await node.start("donor", short)
    found = await become(node, "other", long, "donor")
    assert (found.state, found.start_path, found.runtime_id) == (READY, TRANSFORM, donor.runtime_id)
    assert [time.stage for time in found.stages] == [Stage.FETCH, Stage.MAP, Stage.TRANSFORM]
    (runtime,) = node.runtimes.live
    assert list(runtime.loaded) == ["other"]
    assert node.store.holders()[donor.runtime_id] == frozenset(node.larder.load(long).blobs)
    gone = node.table.get(InstanceId("donor"))
    assert (gone.state, gone.stages) == (GONE, donor.stages)
    assert node.table.story(InstanceId("donor"))[-1].words == f"gone: became other ({found.variant})"
    assert set(node.records.published) == {"other"}
    (delta,) = runtime.deltas
    assert json.loads(delta)["kept"] == [[0, 0, 2]]
    again = await become(node, "third", short, "other")
    assert [time.stage for time in again.stages] == [Stage.MAP, Stage.TRANSFORM]


async def test_a_full_runtime_takes_what_is_made_of_one_of_its_own(node: Any) -> None:
    models = [a_model(node, 2, seed) for seed in range(1, 6)]
    runtimes = {(await node.start(f"i{at}", models[at])).runtime_id for at in range(node.limits.max_instances)}
    assert len(runtimes) == 1
    found = await become(node, "other", models[4], "i0")
    assert {found.runtime_id} == runtimes
    (runtime,) = node.runtimes.live
    assert len(runtime.loaded) == node.limits.max_instances


async def test_a_pair_of_graphs_is_planned_once_for_all_siblings(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [a_model(node, 2 + at % 2, seed=1 + at) for at in range(4)]
    await node.start("i0", models[0])
    reads: list[Digest] = []
    transformer = node.starter._transformer
    read = transformer._read
    monkeypatch.setattr(transformer, "_read", lambda digest: (reads.append(digest), read(digest))[1])
    for at in (1, 2, 3):
        await become(node, f"i{at}", models[at], f"i{at - 1}")
    (runtime,) = node.runtimes.live
    assert runtime.deltas[0] == runtime.deltas[2] != runtime.deltas[1]
    assert len(reads) == 4, "both ends of both ways"


async def test_what_came_without_a_plan_is_planned_by_the_rule_that_the_leader_has(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = a_model(node, 2), a_model(node, 3, seed=2)
    asked: list[tuple[int, int]] = []

    def planner_for(source: Structure, target: Structure) -> GroupPlanner:
        asked.append((len(source.operations), len(target.operations)))
        return GroupPlanner()

    monkeypatch.setattr(transforming, "planner_for", planner_for)
    await node.start("donor", short)
    await become(node, "other", long, "donor")
    assert asked == [(2, 3)]


async def test_one_graph_needs_no_plan(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: only its runtime looks into it."""
    models = [a_model(node, 2, seed, graph=b"no flat program") for seed in (1, 2)]
    await node.start("donor", models[0])
    monkeypatch.setattr(node.starter._transformer, "_read", None)
    await become(node, "other", models[1], "donor")
    (runtime,) = node.runtimes.live
    assert runtime.deltas == [b""]


async def test_a_donor_that_was_lost_on_the_way_has_failed_too(node: Any) -> None:
    short, long = a_model(node, 2), a_model(node, 3, seed=2)
    donor = await node.start("donor", short)
    node.runtimes.faults[donor.variant.model] = [Internal("half of it is mapped")]
    node.runtimes.gate.clear()
    becoming = asyncio.ensure_future(become(node, "other", long, "donor"))
    while len(node.runtimes.early) < 2:  # noqa: ASYNC110 - its runtime is awaited
        await asyncio.sleep(0.005)
    (runtime,) = node.runtimes.live
    del runtime.loaded[InstanceId("donor")], runtime.mapped[InstanceId("donor")]
    node.runtimes.gate.set()
    with pytest.raises(Internal, match="half of it is mapped"):
        await becoming
    lost = node.table.get(InstanceId("donor"))
    assert (lost.state, str(lost.error)) == (FAILED, "instance donor was lost on its way to become other")
    assert node.store.holders().get(donor.runtime_id, frozenset()) == frozenset()
    assert set(node.records.published) == set()
    again = await node.start("again", short)
    assert (again.state, again.runtime_id) == (READY, donor.runtime_id)


async def test_a_delta_that_came_with_the_order_is_passed_on_unread(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = a_model(node, 2), a_model(node, 3, seed=2)
    await node.start("donor", short)
    monkeypatch.setattr(node.starter._transformer, "_read", None)
    await become(node, "other", long, "donor", delta=b'{"planned": "elsewhere"}')
    (runtime,) = node.runtimes.live
    assert runtime.deltas == [b'{"planned": "elsewhere"}']


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(Conflict("instance donor is not idle"), Conflict), (ResourceExhausted("no memory"), ResourceExhausted)],
)
async def test_what_fails_leaves_the_donor(node: Any, fault: Exception, kind: type[Exception]) -> None:
    short, long = a_model(node, 2), a_model(node, 3, seed=2)
    donor = await node.start("donor", short)
    node.runtimes.faults[donor.variant.model] = [fault]
    with pytest.raises(kind):
        await become(node, "other", long, "donor")
    assert node.table.get(InstanceId("donor")).state is READY
    assert node.table.get(InstanceId("other")).state is FAILED
    assert node.store.holders()[donor.runtime_id] == frozenset(node.larder.load(short).blobs)
    bound = await node.start("another", long)
    assert (bound.start_path, bound.runtime_id) == (StartPath.BIND, donor.runtime_id)


@pytest.mark.parametrize("node", [False], indirect=True)
async def test_a_donor_that_refuses_says_nothing_of_the_program(node: Any) -> None:
    """Where bytes are not verified, what was opened once is answered as soon as it is mapped."""
    short, long, sibling = a_model(node, 2), a_model(node, 3, seed=2), a_model(node, 3, seed=3)
    await node.start("known", long)
    donor = await node.start("donor", short)
    node.runtimes.faults[donor.variant.model] = [Conflict("instance donor is not idle")]
    with pytest.raises(Conflict):
        await become(node, "other", sibling, "donor")
    await node.start("again", sibling)
    assert node.runtimes.early == [False, False, False, True]


async def test_where_bytes_were_corrupted_it_is_bound_elsewhere(node: Any) -> None:
    short, long = a_model(node, 2), a_model(node, 3, seed=2)
    donor = await node.start("donor", short)
    node.runtimes.faults[donor.variant.model] = [DataCorrupted("blob 12 has the bytes of 34")]
    found = await become(node, "other", long, "donor")
    assert (found.state, found.start_path) == (READY, StartPath.FORK)
    assert found.runtime_id != donor.runtime_id
    assert node.table.get(InstanceId("donor")).state is READY


async def test_a_donor_must_be_there_ready_and_in_a_runtime_that_takes_it(node: Any) -> None:
    short, long = a_model(node, 2), a_model(node, 3, seed=2)
    with pytest.raises(NotFound, match="'nobody' is not on this node"):
        await become(node, "i1", long, "nobody")
    await node.start("donor", short)
    await node.starter.stop(InstanceId("donor"), "unwanted")
    with pytest.raises(Conflict, match=r"donor donor .* is gone, not ready"):
        await become(node, "i2", long, "donor")
    await node.start("int8", node.make_artifact())
    with pytest.raises(FailedPrecondition, match="donor int8: no runtime to bind into: 1 of flavour ort"):
        await become(node, "i3", long, "int8")
    assert [found.instance_id for found in node.table if found.alive] == ["int8"]


async def test_what_is_no_flat_program_is_no_donor(node: Any) -> None:
    odd, long = a_model(node, 2, graph=b'{"dialect": "aten", "format": 9}'), a_model(node, 3, seed=2)
    await node.start("donor", odd)
    with pytest.raises(FailedPrecondition, match=r"no plan from graph \w{12} to \w{12}: graph of dialect 'aten' and format 9"):
        await become(node, "other", long, "donor")
    assert node.table.get(InstanceId("donor")).state is READY
    await node.start("sound", long)
    with pytest.raises(FailedPrecondition, match="graph: JSONDecodeError"):
        await become(node, "torn", a_model(node, 2, graph=b"{"), "sound")


async def test_a_donor_that_is_stopped_meanwhile_ends_by_that(node: Any) -> None:
    short, long = a_model(node, 2), a_model(node, 3, seed=2)
    await node.start("donor", short)
    node.runtimes.gate.clear()
    becoming = asyncio.ensure_future(become(node, "other", long, "donor"))
    while node.table.find(InstanceId("other")) is None or node.table.get(InstanceId("other")).state is not InstanceState.LOADING:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    node.table.move(InstanceId("donor"), InstanceState.DRAINING, 0.0, "somebody stops it")
    node.runtimes.gate.set()
    assert (await becoming).state is READY
    assert node.table.get(InstanceId("donor")).state is InstanceState.DRAINING, "whoever stops it carries that to its end"
    node.table.move(InstanceId("donor"), GONE, 0.0, "unloaded")
    node.fleet.unpin(node.table.get(InstanceId("donor")).runtime_id, node.table.get(InstanceId("donor")).blobs)


def test_an_assignment_of_etcd_knows_no_donor(make: Any) -> None:
    record: AssignmentRecord = make.assignment(start_path=TRANSFORM)
    assert accepted(record, 1.0).start_path is StartPath.BIND
    assert accepted(make.assignment(start_path=StartPath.FORK), 1.0).start_path is StartPath.FORK
