"""Aliases in etcd: one namespace with models, what they named before, promotion and going back; also when two move one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from registry_world import DOMAIN, Registry, tensor

from tessera.coord import keys
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.accuracy import Agreement
from tessera.domain.errors import AlreadyExists, Conflict, FailedPrecondition, InvalidInput, ModelNotFound, NotFound, VersionNotFound
from tessera.domain.ids import ModelName, VersionKey, VersionNumber
from tessera.domain.records import AliasRecord, VariantRecord, VariantState
from tessera.registry.core.aliases import MOST_STEPS, gone_back, moved
from tessera.registry.core.promotion import Guard
from tessera.registry.core.source import Demands
from tessera.registry.loops.aliases import Promotion
from tessera.testing.builders import an_alias

M, ALIAS = ModelName("m"), ModelName("live")
V1, V2, V3 = VersionNumber(1), VersionNumber(2), VersionNumber(3)


async def test_alias_answers_as_its_model(registry: Registry) -> None:
    await registry.versions("m", 3)
    await registry.aliases.set(DOMAIN, ALIAS, M, None)
    known = await registry.catalogue.model(DOMAIN, ALIAS)
    assert (known.model.name, [a.alias for a in known.aliases]) == ("m", ["live"])


async def test_models_and_aliases_share_one_namespace(registry: Registry) -> None:
    await registry.versions("m", 3)
    with pytest.raises(AlreadyExists, match="'m' is a model"):
        await registry.aliases.set(DOMAIN, M, M, None)
    await registry.aliases.set(DOMAIN, ALIAS, M, None)
    with pytest.raises(AlreadyExists, match="'live' is an alias"):
        await registry.register("live", {"w": tensor(9)})
    assert registry.importer.runs == registry.importer.runs[:3]  # refused before any import


async def test_alias_needs_something_to_stand_for(registry: Registry) -> None:
    await registry.versions("m", 3)
    with pytest.raises(ModelNotFound, match="'n'"):
        await registry.aliases.set(DOMAIN, ALIAS, ModelName("n"), None)
    with pytest.raises(VersionNotFound, match="it has 1, 2, 3"):
        await registry.aliases.set(DOMAIN, ALIAS, M, VersionNumber(7))
    await registry.aliases.set(DOMAIN, ALIAS, M, V1)
    with pytest.raises(InvalidInput, match="stands for a model"):
        await registry.aliases.set(DOMAIN, ModelName("other"), ALIAS, None)


async def test_alias_blocks_deletion_until_it_moves(registry: Registry) -> None:
    await registry.versions("m", 3)
    await registry.aliases.set(DOMAIN, ALIAS, M, V1)
    for version in (V1, None):
        with pytest.raises(FailedPrecondition, match="live"):
            await registry.catalogue.delete(DOMAIN, M, version)
    assert len((await registry.catalogue.model(DOMAIN, M)).versions) == 3
    await registry.aliases.set(DOMAIN, ALIAS, M, V2)
    await registry.catalogue.delete(DOMAIN, M, V1)
    assert [v.version for v in (await registry.catalogue.model(DOMAIN, M)).versions] == [2, 3]


async def test_alias_that_is_set_while_its_version_is_deleted_wins_or_fails(registry: Registry) -> None:
    for fill in range(8):
        registry.importer.onnx = False
        await registry.register("m", {"w": tensor(fill + 1)})
        newest = (await registry.catalogue.model(DOMAIN, M)).model.latest
        results = await asyncio.gather(
            registry.aliases.set(DOMAIN, ALIAS, M, newest), registry.catalogue.delete(DOMAIN, M, newest), return_exceptions=True
        )
        alias = {a.version for a in await registry.catalogue.aliases(DOMAIN)}
        versions = {v.version for v in await registry.catalogue.versions(DOMAIN)}
        assert alias <= versions, results
        if alias:
            await registry.aliases.delete(DOMAIN, ALIAS)


async def scored(registry: Registry, *scores: float) -> None:
    """Versions of `m` from 1 on with these scores on one evaluation set."""
    (file,) = registry.upload({"evaluation set": b"eval"})
    registry.importer.onnx = False
    for fill, score in enumerate(scores, 1):
        registry.importer.agreement = Agreement(0.0, 1.0, 64, "top1", score, score)
        registration = replace(registry.registration("m", {"w": tensor(fill)}), demands=Demands(file, "top1"))
        async with asyncio.timeout(10):
            assert [event.step async for event in registry.imports.register(registration, wait=False)][-1] == "registered"


async def promote(registry: Registry, version: int | None, *, force: bool = False, **limits: float) -> Promotion:
    number = None if version is None else VersionNumber(version)
    return await registry.aliases.promote(DOMAIN, ALIAS, M, number, Guard(**limits), force=force)


async def live(registry: Registry) -> AliasRecord:
    (found,) = await registry.catalogue.aliases(DOMAIN)
    return found


def steps(record: AliasRecord) -> list[str]:
    return [f"{step.model}@{step.version} {step.reason}" for step in record.before]


def first(monkeypatch: pytest.MonkeyPatch, registry: Registry, other: Callable[[], Awaitable[Any]]) -> None:
    """Has `other` done right before the next write: what was decided is late."""
    transact = registry.coordinator.transact

    async def late(compares: Sequence[Any], writes: Sequence[Any]) -> Any:
        monkeypatch.setattr(registry.coordinator, "transact", transact)
        await other()
        return await transact(compares, writes)

    monkeypatch.setattr(registry.coordinator, "transact", late)


async def test_a_new_alias_takes_any_version_and_keeps_what_is_better(registry: Registry) -> None:
    await scored(registry, 0.9, 0.8, 0.95)
    assert (await promote(registry, 1)).comparisons == ()
    with pytest.raises(FailedPrecondition, match=r"accuracy \(top1\): 0.8000 after 0.9000 loses 0.1, at most 0 \(allow_loss\)"):
        await promote(registry, 2)
    assert (await live(registry)).version == 1
    done = await promote(registry, 3)
    assert (done.alias.version, done.alias.reason, steps(done.alias)) == (3, "promoted", ["m@1 promoted"])
    assert await live(registry) == done.alias
    assert (await promote(registry, 2, allow_loss=0.2)).alias.reason == "promoted"


async def test_forced_it_says_what_is_worse_and_goes_back_step_by_step(registry: Registry) -> None:
    await scored(registry, 0.9, 0.95, 0.5)
    await promote(registry, 1)
    await promote(registry, 2)
    forced = (await promote(registry, 3, force=True)).alias
    assert forced.reason == "forced: accuracy (top1): 0.5000 after 0.9500 loses 0.45, at most 0 (allow_loss)"
    back = await registry.aliases.roll_back(DOMAIN, ALIAS)
    assert (back.version, back.reason, steps(back)) == (2, "back from m@3", ["m@1 promoted"])
    assert (await registry.aliases.roll_back(DOMAIN, ALIAS)).version == 1
    with pytest.raises(FailedPrecondition, match="'live' has nothing to go back to from m@1: it named nothing before"):
        await registry.aliases.roll_back(DOMAIN, ALIAS)


async def test_promoted_again_nothing_changes(registry: Registry) -> None:
    await scored(registry, 0.9, 0.95)
    await promote(registry, 1)
    before = (await promote(registry, None)).alias
    assert before.version == 2, "the newest, by its number"
    again = await promote(registry, 2)
    assert (again.unchanged, again.alias) == (True, before)


async def test_what_followed_the_newest_is_compared_and_remembered_by_its_number(registry: Registry) -> None:
    await scored(registry, 0.9, 0.8)
    await registry.aliases.set(DOMAIN, ALIAS, M, None)
    pinned = (await promote(registry, 2)).alias
    assert (pinned.version, steps(pinned)) == (2, []), "it is what it named"
    await registry.aliases.set(DOMAIN, ALIAS, M, None)
    better = await promote(registry, 1)
    assert better.comparisons[0].current == 0.8
    assert steps(better.alias) == ["m@2 promoted", "m@2 set"], "pinned first, followed then"
    assert (await registry.aliases.roll_back(DOMAIN, ALIAS)).version == 2
    with pytest.raises(FailedPrecondition, match=r"from m@2: of what it named before \(m@2\) nothing else is there"):
        await registry.aliases.roll_back(DOMAIN, ALIAS)


async def unready(registry: Registry, version: VersionNumber) -> None:
    """Every variant of that version of `m` has failed."""
    for item in (await registry.coordinator.list(keys.variants_of(VersionKey(DOMAIN, M, version)))).items:
        record = replace(decode(VariantRecord, item.value), state=VariantState.FAILED, reason="test")
        await registry.coordinator.transact([ModRevisionIs(item.key, item.mod_revision)], [Put(item.key, encode(record))])


async def test_what_it_follows_is_the_version_that_answers(registry: Registry) -> None:
    await scored(registry, 0.9, 0.95, 0.99)
    await unready(registry, V3)
    await registry.aliases.set(DOMAIN, ALIAS, M, None)
    with pytest.raises(FailedPrecondition, match=r"m@3 does not replace m@2 .* none of m@3 is ready"):
        await promote(registry, None)
    pinned = await promote(registry, 2)
    assert (pinned.alias.version, pinned.comparisons, steps(pinned.alias)) == (2, (), []), "it is what it named"


async def test_the_way_back_from_a_version_leads_to_the_one_that_answered(registry: Registry) -> None:
    await scored(registry, 0.9, 0.95, 0.99)
    await unready(registry, V3)
    await registry.aliases.set(DOMAIN, ALIAS, M, None)
    await registry.aliases.set(DOMAIN, ALIAS, M, V1)
    assert (await registry.aliases.roll_back(DOMAIN, ALIAS)).version == 2


async def test_without_an_evaluation_set_only_force_moves_it(registry: Registry) -> None:
    await registry.versions("m", 2)
    await promote(registry, 1)
    with pytest.raises(FailedPrecondition, match="m@2 has no evaluation set, so there is no common measure"):
        await promote(registry, 2)
    assert (await promote(registry, 2, force=True)).alias.version == 2


async def test_a_deleted_version_is_passed_over_on_the_way_back(registry: Registry) -> None:
    await scored(registry, 0.7, 0.8, 0.9)
    for version in (1, 2, 3):
        await promote(registry, version)
    await registry.catalogue.delete(DOMAIN, M, V2)
    back = await registry.aliases.roll_back(DOMAIN, ALIAS)
    assert (back.version, steps(back)) == (1, [])
    await registry.catalogue.delete(DOMAIN, M, V3)


async def test_a_move_that_came_first_is_decided_against(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    await scored(registry, 0.7, 0.9, 0.8)
    await promote(registry, 1)
    first(monkeypatch, registry, lambda: promote(registry, 2))
    with pytest.raises(FailedPrecondition, match="m@3 does not replace m@2"):
        await promote(registry, 3)
    found = await live(registry)
    assert (found.version, steps(found)) == (2, ["m@1 promoted"])


async def test_of_two_that_go_back_at_once_one_does(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    await scored(registry, 0.7, 0.8, 0.9)
    for version in (1, 2, 3):
        await promote(registry, version)
    first(monkeypatch, registry, lambda: registry.aliases.roll_back(DOMAIN, ALIAS))
    with pytest.raises(Conflict, match="moved by somebody else"):
        await registry.aliases.roll_back(DOMAIN, ALIAS)
    assert (await live(registry)).version == 2


async def test_a_registration_in_between_does_not_stop_the_way_back(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    await scored(registry, 0.7, 0.8)
    await promote(registry, 1)
    await promote(registry, 2)
    first(monkeypatch, registry, lambda: registry.register("m", {"w": tensor(9)}))
    assert (await registry.aliases.roll_back(DOMAIN, ALIAS)).version == 1


async def test_a_version_that_is_deleted_in_between_is_not_gone_back_to(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    await scored(registry, 0.7, 0.8)
    await promote(registry, 1)
    await promote(registry, 2)
    first(monkeypatch, registry, lambda: registry.catalogue.delete(DOMAIN, M, V1))
    with pytest.raises(FailedPrecondition, match=r"what it named before \(m@1\) nothing else is there"):
        await registry.aliases.roll_back(DOMAIN, ALIAS)
    assert (await live(registry)).version == 2


async def test_what_cannot_be_promoted_or_go_back(registry: Registry) -> None:
    await scored(registry, 0.9)
    with pytest.raises(NotFound, match="alias 'live' does not exist"):
        await registry.aliases.roll_back(DOMAIN, ALIAS)
    with pytest.raises(AlreadyExists, match="'m' is a model"):
        await registry.aliases.roll_back(DOMAIN, M)
    for force in (False, True):
        with pytest.raises(VersionNotFound, match="no version 7; it has 1"):
            await promote(registry, 7, force=force)
    with pytest.raises(ModelNotFound, match="'n'"):
        await registry.aliases.promote(DOMAIN, ALIAS, ModelName("n"), None, Guard(), force=True)
    assert await registry.catalogue.aliases(DOMAIN) == []


def test_steps_are_taken_back_in_their_order_and_the_oldest_are_forgotten() -> None:
    record = an_alias(version=1)
    for number in range(2, 30):
        record = moved(record, VersionNumber(99), an_alias(version=number, reason=f"move {number}"))
    assert len(record.before) == MOST_STEPS
    there = {(record.model, VersionNumber(number)) for number in range(1, 30) if number != 20}
    reached = []
    while record.before:
        record = gone_back(record, VersionNumber(99), there, 5.0)
        reached.append(record.version)
    assert reached == [number for number in range(28, 12, -1) if number != 20]
    assert (record.since_unix_s, record.reason) == (5.0, "back from digits@14")
