"""Autoscaling in the scheduler: who serves for whom, what there is room for, and what never happens. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from scheduler_builders import instance, key, node, node_record, variant
from scheduler_world import CRASH, World, failing, until

from tessera.coord import keys
from tessera.domain.accuracy import Agreement
from tessera.domain.ids import BuildClass, InstanceId, NodeId, ProfileClass, VariantKey
from tessera.domain.records import LoadState, NodeRecord, ProfileRecord, VariantRecord
from tessera.policy.load.base import Load, Observation
from tessera.scheduler.app import Scheduler
from tessera.scheduler.core.capacity import Capacities, Group
from tessera.testing import run_virtual
from tessera.testing.builders import a_latency_row, a_profile

P = ProfileClass("p")
LOSSY = Agreement(0.1, 0.99, 8)


def profile(of: VariantKey, ms: float, at: ProfileClass = P, batches: tuple[int, ...] = (1,)) -> ProfileRecord:
    rows = (a_latency_row(batch, threads, ms, mean_ms=ms) for threads in (1, 2) for batch in batches)
    return a_profile(of, profile_class=at, rows=tuple(rows))


def groups(
    nodes: Mapping[str, dict[str, Any]],
    instances: list[Any],
    variants: list[VariantRecord],
    ms: Mapping[str, float],
    loads: Mapping[InstanceId, Load] | None = None,
    lossy: bool = False,
    closed: tuple[NodeId, ...] = (),
    batches: tuple[int, ...] = (1,),
) -> list[Group]:
    """Of version m@1: `ms` are the profiled latencies by variant, of each of the `batches`."""
    record_fields = {"build_class", "profile_class", "flavours", "host_id", "usd_per_hour", "cpu_count", "runtime_threads"}
    records: dict[NodeId, tuple[NodeRecord, ...]] = {}
    observed = {}
    for name, facts in nodes.items():
        records[NodeId(name)] = (node_record(name, **{"host_id": name, **{k: v for k, v in facts.items() if k in record_fields}}),)
        here = [item for item in instances if item.node_id == name]
        observed[NodeId(name)] = node(
            name, here, **{k: v for k, v in facts.items() if k not in ("host_id", "usd_per_hour", "runtime_threads")}
        )
    profiles = {(key(name), P): profile(key(name), at, batches=batches) for name, at in ms.items()}
    version = key().version_key
    return Capacities(observed, records, profiles, loads or {}, closed).groups({version: variants}, {version} if lossy else set())


def kinds(group: Group) -> dict[str, tuple[float, float, int]]:
    """Variant -> items a second, cost, how many more."""
    return {str(of.variant.variant): (of.items_per_s, of.cost, group.load.fits(of)) for of in group.load.kinds}


def busy(name: str = "i-1", at: str = "n1", items_per_s: float = 50.0, **changes: Any) -> Any:
    return instance(name, at, items_per_s=items_per_s, requests_per_s=items_per_s, idle_s=0.0, **changes)


ORT, ATEN = variant(), variant("aten-fp32", backend="aten", flavour="aten", build_class=None)


def test_what_a_plain_request_may_get_serves_for_each_other() -> None:
    wrong = [
        variant("withheld", withheld="loses too much"),
        variant("lossy", agreement=LOSSY),
        variant("other-class", build_class=BuildClass("b")),
        variant("unmeasured"),
        variant("slower"),
    ]
    ms = {"ort-fp32": 10.0, "aten-fp32": 8.0, "withheld": 1.0, "lossy": 1.0, "other-class": 1.0, "slower": 11.0}
    (group,) = groups({"n1": {}, "n2": {"cpu_count": 4}}, [busy()], [ORT, ATEN, *wrong], ms)
    assert kinds(group) == {"aten-fp32": (125.0, 1.0, 4), "ort-fp32": (100.0, 1.0, 3)}
    assert group.load.offered_items_per_s == 50.0
    (group,) = groups({"n1": {}}, [busy()], [ORT, *wrong], ms, lossy=True)
    assert set(kinds(group)) == {"ort-fp32", "lossy"}


def test_what_is_asked_for_by_name_is_a_group_by_itself() -> None:
    int8 = variant("int8", agreement=LOSSY)
    found = groups({"n1": {}}, [busy(), busy("i-2", variant=key("int8"))], [ORT, int8], {"ort-fp32": 10.0, "int8": 2.0})
    assert [(group.key[1], set(kinds(group))) for group in found] == [("", {"ort-fp32"}), ("int8", {"int8"})]


@pytest.mark.parametrize(("joins", "items_per_s"), [(True, 800.0), (False, 100.0)])
def test_who_is_joined_with_nobody_has_the_capacity_of_batch_1(joins: bool, items_per_s: float) -> None:
    (group,) = groups({"n1": {}}, [busy()], [replace(ORT, joins=joins)], {"ort-fp32": 10.0}, batches=(1, 8))
    assert kinds(group)["ort-fp32"][0] == items_per_s


def test_without_a_profile_of_what_runs_nothing_is_scaled() -> None:
    assert groups({"n1": {}}, [busy()], [ORT, ATEN], {"aten-fp32": 8.0}) == []
    assert groups({"n1": {}}, [busy(), busy("i-2", variant=key("aten-fp32"))], [ORT, ATEN], {"ort-fp32": 8.0}) == []


def test_room_is_what_nobody_uses_and_a_machine_has_its_cores_once() -> None:
    ms = {"ort-fp32": 10.0}
    facts = {"cpu_count": 8, "cpu_cores": 6.5}
    (group,) = groups({"n1": facts}, [busy()], [ORT], ms)
    assert group.load.room == {P: 1.5}
    assert kinds(group)["ort-fp32"][2] == 1, "two of a variant on a node at most"
    (group,) = groups({"n1": facts, "n2": facts}, [busy()], [ORT], ms)
    assert kinds(group)["ort-fp32"][2] == 2
    (group,) = groups({"n1": {**facts, "host_id": "one"}, "n2": {**facts, "host_id": "one"}}, [busy()], [ORT], ms)
    assert (group.load.room, kinds(group)["ort-fp32"][2]) == ({P: 1.5}, 0), "three quarters of a core on each"
    (group,) = groups({"n1": facts, "n2": facts}, [busy()], [ORT], ms, closed=(NodeId("n2"),))
    assert list(group.nodes.values()) == [("n1",)]


def test_threads_are_no_reservation() -> None:
    two_threads = {"cpu_count": 2, "runtime_threads": 2}
    (group,) = groups({"n1": {**two_threads, "cpu_cores": 1.5}}, [busy()], [ORT], {"ort-fp32": 10.0})
    assert (group.load.room, kinds(group)["ort-fp32"][2]) == ({P: 2.0}, 1), "less than 80 % is in use"
    (group,) = groups({"n1": {**two_threads, "cpu_cores": 1.7}}, [busy()], [ORT], {"ort-fp32": 10.0})
    assert kinds(group)["ort-fp32"][2] == 0


def test_a_full_node_takes_what_answers_more_in_place_of_what_runs_there() -> None:
    ms = {"ort-fp32": 10.0, "aten-fp32": 8.0}
    full = {"cpu_count": 2, "cpu_cores": 2.0}
    (group,) = groups({"n1": full}, [busy()], [ORT, ATEN], ms)
    assert (kinds(group)["ort-fp32"][2], kinds(group)["aten-fp32"][2], group.load.room) == (0, 1, {P: 1.0})
    (group,) = groups({"n1": full}, [busy(variant=key("aten-fp32"))], [ORT, ATEN], ms)
    assert kinds(group)["aten-fp32"][2] == 0, "the other one answers less"
    (group,) = groups({"n1": {}, "n2": full}, [busy()], [ORT, ATEN], ms)
    assert group.nodes[next(kind for kind in group.nodes if kind.variant == ATEN.key)] == ("n1",), "nothing of it runs on the other"


def test_cost_is_the_larger_share_of_a_nodes_price() -> None:
    ms = {"ort-fp32": 10.0}
    (group,) = groups({"n1": {"cpu_count": 4, "usd_per_hour": 2.0}}, [busy()], [ORT], ms)
    assert kinds(group)["ort-fp32"][1] == 0.5
    (group,) = groups({"n1": {"cpu_count": 4, "usd_per_hour": 2.0, "memory_bytes": 4 << 20}}, [busy()], [ORT], ms)
    assert kinds(group)["ort-fp32"][1] == pytest.approx(2.0 * ((2 << 20) + 1000) / (4 << 20)), "memory is what it takes more of"


def test_costs_are_in_cores_for_all_unless_every_node_has_a_price() -> None:
    for price, costs in ((0.0, {1.0}), (8.0, {0.5, 2.0})):
        nodes = {"n1": {"cpu_count": 4, "usd_per_hour": 2.0}, "n2": {"cpu_count": 4, "usd_per_hour": price}}
        (group,) = groups(nodes, [busy()], [ORT], {"ort-fp32": 10.0})
        assert {kind.cost for kind in group.load.kinds} == costs


def test_what_load_states_say_about_capacity() -> None:
    def state(found: LoadState) -> Load:
        return Load(found, 0.0, 0.0, Observation(0, 0, 0.0, 0.0, 0.0, 0.0), offered_items_per_s=90.0)

    both = [busy(), busy("i-2", items_per_s=40.0)]
    ms = {"ort-fp32": 10.0}
    (group,) = groups({"n1": {}}, both, [ORT], ms, {InstanceId("i-2"): state(LoadState.OVERLOADED)})
    assert (group.load.capacity_items_per_s, group.load.offered_items_per_s) == (140.0, 140.0)
    (group,) = groups({"n1": {}}, both, [ORT], ms, {InstanceId("i-2"): state(LoadState.INTERFERED)})
    assert group.load.capacity_items_per_s == 100.0, "requests avoid it"
    (group,) = groups({"n1": {}}, both[1:], [ORT], ms, {InstanceId("i-2"): state(LoadState.INTERFERED)})
    assert group.load.capacity_items_per_s == 100.0, "it moves, and nothing is added for it"


async def one_serving(world: World, policy: str = "infaas", **settings: Any) -> Scheduler:
    scheduler = await world.add_scheduler(autoscaling_policy=policy, instance_keep_alive_s=36000.0, **settings)
    await world.put(keys.profile(key(), P), profile(key(), 10.0))
    await world.start(scheduler)
    await world.add_node("n2", cpu_count=8)
    await world.add_node("n3", cpu_count=8)
    await asyncio.sleep(1.0)
    return scheduler


def offer(world: World, items_per_s: float) -> None:
    """Spread over all that is ready; each answers 100 a second at most."""
    live = world.live()
    for there in world.nodes.values():
        for name, item in there.instances.items():
            each = min(100.0, items_per_s / len(live))
            there.instances[name] = replace(
                item, items_per_s=each, requests_per_s=each, run_ms=10.0 + each / 1e6, run_items=1.0, served=item.served + 1, idle_s=0.0
            )


async def offered(world: World, items_per_s: float, seconds: float) -> int:
    """How many instances there are after so long under a load."""
    for _ in range(int(2 * seconds)):
        offer(world, items_per_s)
        await asyncio.sleep(0.5)
    return len(world.live())


@pytest.mark.parametrize("policy", ["infaas", "tessera"])
def test_instances_follow_the_load_up_at_once_and_down_with_patience(policy: str) -> None:
    async def main() -> None:
        async with World() as world:
            await one_serving(world, policy)
            assert await offered(world, 60.0, 20.0) == 1
            assert await offered(world, 240.0, 10.0) == 3
            assert await offered(world, 240.0, 60.0) == 3, "and no more"
            assert await offered(world, 150.0, 2.0) == 3
            assert await offered(world, 150.0, 20.0) == 2
            assert await offered(world, 0.0, 120.0) == 1, "the last one is keep-alive's"

    run_virtual(main)


def test_none_leaves_it_alone() -> None:
    async def main() -> None:
        async with World() as world:
            await one_serving(world, "none")
            assert await offered(world, 500.0, 20.0) == 1

    run_virtual(main)


def test_a_load_that_swings_faster_than_the_patience_keeps_its_instances() -> None:
    async def main() -> None:
        async with World() as world:
            await one_serving(world)
            await offered(world, 240.0, 10.0)
            starts = sum(len(there.orders) for there in world.nodes.values())
            for _ in range(10):
                await offered(world, 100.0, 6.0)
                await offered(world, 240.0, 4.0)
            assert sum(len(there.orders) for there in world.nodes.values()) == starts
            assert len(world.live()) == 3

    run_virtual(main)


def test_a_start_that_fails_is_tried_again_later_and_costs_nothing_that_runs() -> None:
    async def main() -> None:
        async with World() as world:
            await one_serving(world)
            for there in world.nodes.values():
                there.behave = failing(CRASH)
            assert await offered(world, 190.0, 8.0) == 1
            assert await offered(world, 190.0, 60.0) == 2

    run_virtual(main)


def test_another_variant_takes_over_before_the_first_one_drains() -> None:
    async def main() -> None:
        async with World() as world:
            await one_serving(world)
            await world.add_variant(variant("fast"))
            await world.put(keys.profile(key("fast"), P), profile(key("fast"), 1.0))
            seen: list[int] = []
            for _ in range(30):
                offer(world, 500.0)
                seen.append(len(world.live()))
                await asyncio.sleep(0.1)
            await until(lambda: [item.variant.variant for item in world.live()] == ["fast"])
            assert 0 not in seen

    run_virtual(main)


def test_nothing_is_removed_while_etcd_is_away_or_a_start_is_waited_for() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler = await one_serving(world)
            assert await offered(world, 240.0, 10.0) == 3
            world.etcd.stop()
            assert await offered(world, 50.0, 30.0) == 3
            world.etcd.start()
            assert await offered(world, 50.0, 60.0) == 1
            assert scheduler.leading.leadership is not None

    run_virtual(main)


def test_starts_of_a_tick_are_bounded() -> None:
    async def main() -> None:
        async with World() as world:
            await one_serving(world, starts_per_tick=1)
            assert await offered(world, 500.0, 1.0) <= 2
            assert await offered(world, 500.0, 20.0) >= 4

    run_virtual(main)
