"""A plan between registered variants is priced by what was measured: on the class that is named, else where it was measured last."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tessera.coord import keys
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.artifact import Artifact
from tessera.domain.errors import FailedPrecondition, NotFound
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, Digest, ModelName, ProfileClass, VersionNumber
from tessera.domain.records import VariantState
from tessera.domain.transformation import MetaOperator
from tessera.policy.transform.by_size import MOST_OPERATIONS
from tessera.policy.transform.costs import ASSUMED, ASSUMED_BASE_MS
from tessera.registry.loops.catalogue import Catalogue
from tessera.registry.loops.planning import Planning
from tessera.testing.builders import (
    a_digest,
    a_meta_cost_record,
    a_model,
    a_variant,
    a_variant_key,
    a_version,
    a_version_key,
    an_alias,
    an_artifact,
)
from tessera.testing.coord import FakeCoordinator


def graph(kinds: list[str]) -> bytes:
    nodes = [[kind, [{"slot": at}], {}, at + 1] for at, kind in enumerate(kinds)]
    ports = {"inputs": [{"name": "x", "slot": 0}], "outputs": [{"name": "y", "slot": len(kinds)}]}
    return json.dumps({"format": 1, "dialect": "aten", "slots": len(kinds) + 1, "tensors": [], "nodes": nodes, **ports}).encode()


class Graphs:
    """Implements `Blobs`, as far as plans read them."""

    GRAPHS = {
        a_digest(1): graph(["aten.relu.default"]),
        a_digest(2): graph(["aten.relu.default", "aten.linear.default", "aten.neg.default"]),
    }

    async def read(self, digest: Digest) -> bytes:
        return self.GRAPHS[digest]

    async def artifact(self, digest: Digest) -> Artifact:
        return replace(an_artifact(), tensors=())


class World:
    def __init__(self) -> None:
        self.etcd = FakeCoordinator()
        self.planning = Planning(Catalogue(self.etcd), Graphs())  # type: ignore[arg-type]

    async def put(self, key: str, record: Any) -> None:
        await self.etcd.transact([ModRevisionIs(key, 0)], [Put(key, encode(record))])

    async def measured(self, name: str, at_unix_s: float, **fields: Any) -> None:
        record = a_meta_cost_record(profile_class=ProfileClass(name), measured_unix_s=at_unix_s, **fields)
        await self.put(keys.meta_cost(DEFAULT_TRUST_DOMAIN, "aten", ProfileClass(name)), record)

    async def change(self, key: str, record: Any) -> None:
        found = await self.etcd.get(key)
        assert found is not None
        await self.etcd.transact([ModRevisionIs(key, found.mod_revision)], [Put(key, encode(record))])

    async def show(self, source: str = "short", **fields: Any) -> Any:
        return await self.planning.show(DEFAULT_TRUST_DOMAIN, source, "long", **fields)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    found = World()
    for number, name in ((1, "short"), (2, "long")):
        await found.put(keys.name(DEFAULT_TRUST_DOMAIN, ModelName(name)), "model")
        await found.put(keys.model(DEFAULT_TRUST_DOMAIN, ModelName(name)), a_model(name))
        await found.put(keys.version(a_version_key(name)), a_version(name))
        await found.put(
            keys.variant(a_variant_key(name)), a_variant(name, backend="aten", graph=a_digest(number), artifact=a_digest(number))
        )
    yield found
    await found.etcd.close()


@pytest.mark.parametrize(
    ("operations", "named", "planner"),
    [(MOST_OPERATIONS, "", "tessera"), (MOST_OPERATIONS + 1, "", "group"), (MOST_OPERATIONS + 1, "tessera", "tessera")],
)
async def test_the_planner_is_that_of_plans_that_are_carried_out_unless_another_one_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, operations: int, named: str, planner: str
) -> None:
    for number, kind in ((1, "aten.relu.default"), (2, "aten.neg.default")):
        monkeypatch.setitem(Graphs.GRAPHS, a_digest(number), graph([kind, *["aten.exp.default"] * (operations - 1)]))
    found = await world.show(planner=named)
    assert (found.plan.planner, found.operations) == (planner, (operations, operations))


async def test_where_nothing_was_measured_costs_are_assumed(world: World) -> None:
    found = await world.show()
    assert (found.record, found.costs.base_ms) == (None, ASSUMED_BASE_MS)
    assert {step.cost_ms for step in found.plan.steps} == {ASSUMED[MetaOperator.ADD].fixed_ms}


async def test_steps_are_priced_by_what_was_measured_last_or_on_the_class_that_is_named(world: World) -> None:
    await world.measured("old", 1000.0, base_ms=9.0)
    await world.measured("new", 2000.0)
    found = await world.show()
    assert found.record.profile_class == "new"
    assert found.costs.base_ms == 1.5
    assert {step.kind: step.cost_ms for step in found.plan.steps} == {"aten.linear.default": 0.05, "aten.neg.default": 0.03}
    assert found.plan.expected_ms == pytest.approx(0.08)
    assert (await world.show(profile_class="old")).costs.base_ms == 9.0


async def test_a_class_that_was_not_measured_is_said_with_those_that_were(world: World) -> None:
    with pytest.raises(NotFound, match="on profile class 'odd': not measured; measured are none"):
        await world.show(profile_class="odd")
    await world.measured("here", 1000.0)
    with pytest.raises(NotFound, match="measured are here"):
        await world.show(profile_class="odd")


@pytest.mark.parametrize("state", [VariantState.BUILDING, VariantState.FAILED])
async def test_a_plan_is_of_the_version_that_answers_for_the_name(world: World, state: VariantState) -> None:
    await world.put(keys.alias(DEFAULT_TRUST_DOMAIN, ModelName("live")), an_alias("live", "short", None))
    await world.change(keys.model(DEFAULT_TRUST_DOMAIN, ModelName("short")), a_model("short", latest=VersionNumber(2)))
    await world.put(keys.version(a_version_key("short", 2)), a_version("short", version=VersionNumber(2)))
    newer = a_variant_key("short", 2)
    await world.put(keys.variant(newer), a_variant(key=newer, state=state))
    for name in ("short", "live"):
        assert (await world.show(name)).source.key == a_variant_key("short", 1)
    with pytest.raises(FailedPrecondition, match=f"short@2/aten-fp32 is {state}"):
        await world.show("short@2")
    await world.change(keys.variant(newer), a_variant(key=newer, graph=a_digest(1)))
    assert (await world.show("live")).source.key == newer
