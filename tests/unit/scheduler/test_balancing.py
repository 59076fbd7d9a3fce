"""Homes: found for all when the world has changed much, one by one for those that come, and starts go there."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from scheduler_builders import key, variant
from scheduler_world import World, until

from tessera.domain.errors import FailedPrecondition, InvalidInput
from tessera.domain.ids import Digest, NodeId, RequestId, VariantKey
from tessera.domain.records import VariantRecord
from tessera.policy.balance import registry
from tessera.policy.balance.base import Homes, Model, Node
from tessera.policy.balance.hashed import HashBalancer
from tessera.scheduler.adapters.graph_plans import GraphPlans
from tessera.scheduler.core.usage import NO_DEMAND
from tessera.scheduler.loops import balancing
from tessera.scheduler.loops.starting import StartRequest
from tessera.testing import run_virtual

NAMES = [f"m{at}" for at in range(8)]


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**given: Any) -> None:
        run_virtual(functools.partial(test, **given))

    return run


class Watched(HashBalancer):
    """What it was asked."""

    def __init__(self) -> None:
        self.assigned: list[tuple[list[str], list[str]]] = []
        self.added: list[str] = []
        self.models: dict[str, Model] = {}

    def assign(self, models: Sequence[Model], nodes: Sequence[Node]) -> Homes:
        self.assigned.append((sorted(model.name for model in models), sorted(node.node_id for node in nodes)))
        self.models = {model.name: model for model in models}
        return super().assign(models, nodes)

    def add(self, model: Model, models: Sequence[Model], nodes: Sequence[Node], homes: Homes) -> NodeId:
        self.added.append(model.name)
        assert homes.node_of.keys() == {other.name for other in models}
        return super().add(model, models, nodes, homes)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    monkeypatch.setitem(registry.BALANCERS, "hash", lambda edits: found)
    return found


def full(*names: str) -> list[str]:
    return sorted(f"{name}@1" for name in names)


def homes(scheduler: Any) -> dict[str, NodeId | None]:
    return {name: scheduler._balancing.home(of(name)) for name in NAMES}


def of(model: str) -> VariantKey:
    return key(model=model)


def model(name: str) -> VariantRecord:
    return variant(key=of(name))


@virtual
async def test_starts_go_where_models_live(watched: Watched) -> None:
    async with World() as world:
        await world.add_node("n2")
        for name in NAMES:
            await world.add_variant(model(name))
        scheduler = await world.add_scheduler(balance_policy="hash")
        await until(lambda: None not in homes(scheduler).values())
        lives = homes(scheduler)
        assert set(lives.values()) == {"n1", "n2"}
        for name in NAMES:
            answer = await scheduler.starter.start(StartRequest(RequestId(name), (of(name),), 5.0))
            assert answer.instance.node_id == lives[name]


@virtual
async def test_one_that_comes_gets_a_home_and_all_when_they_are_twice_as_many_or_nodes_come_or_time_has_passed(watched: Watched) -> None:
    async with World() as world:
        for name in ("m0", "m1"):
            await world.add_variant(model(name))
        scheduler = await world.add_scheduler(balance_policy="hash", balance_s=100.0)
        first = ("m", "m0", "m1")
        await until(lambda: watched.assigned == [(full(*first), ["n1"])])
        await world.add_variant(model("m2"))
        await until(lambda: scheduler._balancing.home(of("m2")) == "n1")
        assert (watched.added, len(watched.assigned)) == (full("m2"), 1)
        for name in ("m3", "m4"):
            await world.add_variant(model(name))
        await until(lambda: len(watched.assigned) == 2)
        assert watched.assigned[1] == (full(*first, "m2", "m3", "m4"), ["n1"])
        await world.add_node("n2")
        await until(lambda: len(watched.assigned) == 3)
        assert watched.assigned[2][1] == ["n1", "n2"]
        await until(lambda: len(watched.assigned) == 4, 120.0)


@virtual
async def test_many_that_come_at_once_are_a_reason_to_look_at_all(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancing, "ADDED_AT_ONCE", 1)
    async with World() as world:
        for name in NAMES[:4]:
            await world.add_variant(model(name))
        await world.add_scheduler(balance_policy="hash")
        await until(lambda: len(watched.assigned) == 1)
        await world.add_variant(variant(key=of("without-tensors"), tensor_bytes=0))
        for name in NAMES[4:6]:
            await world.add_variant(model(name))
        await until(lambda: len(watched.assigned) == 2)
        assert watched.assigned[1][0] == full("m", *NAMES[:6])


@virtual
async def test_all_variants_of_a_version_are_one_model_with_the_graph_that_can_be_transformed(watched: Watched) -> None:
    async with World() as world:
        flat = variant("aten-fp32", backend="aten", graph=Digest("a" * 64), artifact=Digest("b" * 64), tensor_bytes=500)
        await world.add_variant(flat)
        scheduler = await world.add_scheduler(balance_policy="hash", balance_s=5.0)
        await until(lambda: scheduler._balancing.home(key()) is not None)
        known = watched.models["m@1"]
        assert (known.graph, known.demand) == ("a" * 64, NO_DEMAND)
        assert {(blob.digest, blob.size_bytes) for blob in known.blobs} == {("f" * 64, 1000), ("b" * 64, 500)}
        assert scheduler._balancing.home(key()) == scheduler._balancing.home(flat.key) == "n1"
        for name, count in (("ort-fp32", 12), ("aten-fp32", 5)):
            started = (await world.start(scheduler, name)).instance
            world.nodes["n1"].instances[started.instance_id] = replace(started, served=count)
        await until(lambda: sum(watched.models["m@1"].demand) == 17)


@virtual
async def test_homes_are_found_anew_when_twice_as_many_graphs_are_known(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [0]
    monkeypatch.setattr(GraphPlans, "graphs", property(lambda plans: known[-1]))
    async with World() as world:
        await world.add_scheduler(balance_policy="hash")
        for graphs, times in ((0, 1), (1, 2), (2, 3), (3, 3), (4, 4)):
            known.append(graphs)
            await until(lambda times=times: len(watched.assigned) >= times)
            await asyncio.sleep(2 * balancing.LOOK_S)
            assert len(watched.assigned) == times, graphs


@virtual
async def test_a_balancer_that_fails_leaves_homes_as_they_were(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        await world.add_node("n2")
        scheduler = await world.add_scheduler(balance_policy="hash", balance_s=2.0)
        await until(lambda: scheduler._balancing.home(key()) is not None)
        home, calls = scheduler._balancing.home(key()), 0

        def fail(models: Any, nodes: Any) -> Homes:
            nonlocal calls
            calls += 1
            raise FailedPrecondition("no library")

        monkeypatch.setattr(watched, "assign", fail)
        await until(lambda: calls > 1)
        assert scheduler._balancing.home(key()) == home


@virtual
async def test_a_standby_finds_no_homes_and_does_when_it_leads(watched: Watched) -> None:
    async with World() as world:
        first = await world.add_scheduler(balance_policy="hash")
        standby = await world.add_scheduler(balance_policy="hash")
        await until(lambda: first._balancing.home(key()) is not None)
        assert standby._balancing.home(key()) is None
        await world.kill(first)
        await until(lambda: standby._balancing.home(key()) is not None)


@virtual
async def test_what_does_not_exist_or_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        with pytest.raises(InvalidInput, match=r"balancer.*nobody.*bytes-shared"):
            await world.add_scheduler(balance_policy="nobody")
        monkeypatch.setitem(sys.modules, "kmedoids", None)
        with pytest.raises(FailedPrecondition, match=r"tessera-pkg\[kmedoids\]"):
            await world.add_scheduler(balance_policy="k-medoids")
