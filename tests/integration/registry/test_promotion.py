"""Promotion through a real registry and etcd: guarded by real scores, raced for, killed in between, and back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from registry_process import DOMAIN, RegistryProcess, source_file
from scored_nets import Net, evaluation, pt2

from tessera.api.registry.v1 import registry_pb2
from tessera.coord import keys
from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.accuracy import Agreement
from tessera.domain.errors import Conflict, FailedPrecondition, InvalidInput, TesseraError
from tessera.domain.ids import VersionNumber
from tessera.domain.records import Evaluation
from tessera.testing.builders import a_digest, a_model, a_variant, a_variant_key, a_version

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch, of itself


async def scored(coordinator: EtcdCoordinator, *scores: float) -> None:
    """The records of a model `m` with versions of these scores, as imports leave them."""
    model = a_model("m", latest=VersionNumber(len(scores)), highest=VersionNumber(len(scores)))
    writes = [Put(keys.name(DOMAIN, model.name), b"model"), Put(keys.model(DOMAIN, model.name), encode(model))]
    for number, score in enumerate(scores, 1):
        version = a_version("m", version=VersionNumber(number), evaluation=Evaluation(a_digest(7), 100, "top1"))
        key = a_variant_key("m", number)
        variant = a_variant(key=key, artifact=None, graph=None, agreement=Agreement(0.0, 1.0, 64, "top1", score, score))
        writes += [Put(keys.version(key.version_key), encode(version)), Put(keys.variant(key), encode(variant))]
    await coordinator.transact([ModRevisionIs(write.key, 0) for write in writes], writes)


async def promote(registry: RegistryProcess, version: int, **fields: Any) -> registry_pb2.PromoteAliasResponse:
    return await registry.stub.PromoteAlias(registry_pb2.PromoteAliasRequest(alias="live", model="m", version=version, **fields))


async def back(registry: RegistryProcess) -> registry_pb2.AliasInfo:
    return (await registry.stub.RollBackAlias(registry_pb2.RollBackAliasRequest(alias="live"))).alias


async def live(registry: RegistryProcess) -> registry_pb2.AliasInfo:
    (found,) = (await registry.model("m")).aliases
    return found


async def test_a_worse_version_is_refused_with_its_score_forced_and_left_again(registry: RegistryProcess) -> None:
    data = evaluation(Net(1))
    sets = registry_pb2.EvaluationSet(file=source_file("eval.npz", data), metric="top1")
    for head in (1, 2):
        await registry.register("m", pt2(Net(head)), sets=[data], evaluation=sets)
    await promote(registry, 1)
    with pytest.raises(FailedPrecondition, match=r"m@2 does not replace m@1 as 'live': accuracy \(top1\): 0\.\d+ after 1\.0000 loses"):
        await promote(registry, 2)
    with pytest.raises(InvalidInput, match=r"allow_loss 2\.0: must be a number from 0 to 1"):
        await promote(registry, 2, guard=registry_pb2.Guard(allow_loss=2.0))
    assert (await live(registry)).version == 1
    forced = await promote(registry, 2, force=True)
    accuracy, *_ = forced.comparisons
    assert (accuracy.measure, accuracy.current, accuracy.refused) == ("accuracy", 1.0, True)
    assert forced.alias.reason.startswith("forced: accuracy (top1): 0.")
    assert [(step.model, step.version, step.reason) for step in forced.alias.before] == [("m", 1, "promoted")]
    assert await live(registry) == forced.alias
    gone_back = await back(registry)
    assert (gone_back.version, gone_back.reason, list(gone_back.before)) == (1, "back from m@2", [])
    assert await live(registry) == gone_back


async def test_of_two_who_promote_at_once_none_passes_by_the_other(registry: RegistryProcess, coordinator: EtcdCoordinator) -> None:
    """Whoever comes second is judged by what the first one put there: the best of the three stays, however they race."""
    await scored(coordinator, 0.7, 0.9, 0.8)
    for _ in range(5):
        await promote(registry, 1, force=True)
        results = await asyncio.gather(*(promote(registry, version) for version in (2, 3) * 4), return_exceptions=True)
        assert all(not isinstance(each, BaseException) or isinstance(each, FailedPrecondition) for each in results), results
        now = await live(registry)
        assert now.version == 2
        assert [step.version for step in now.before][-1] in (1, 3)


async def test_of_those_who_go_back_at_once_each_takes_a_step_or_is_told(registry: RegistryProcess, coordinator: EtcdCoordinator) -> None:
    await scored(coordinator, 0.7, 0.9)
    await promote(registry, 1)
    for version in (2, 1) * 4:
        await promote(registry, version, force=True)
    steps = len((await live(registry)).before)
    results = await asyncio.gather(*(back(registry) for _ in range(6)), return_exceptions=True)
    taken = [each for each in results if not isinstance(each, BaseException)]
    assert taken
    assert all(isinstance(each, Conflict) for each in results if isinstance(each, BaseException)), results
    assert len((await live(registry)).before) == steps - len(taken)


@pytest.mark.parametrize(("point", "moved"), [("registry.before_promotion", False), ("registry.after_promotion", True)])
async def test_killed_in_between_it_has_moved_whole_or_not_at_all(
    tmp_path: Path, etcd: EtcdProcess, coordinator: EtcdCoordinator, point: str, moved: bool
) -> None:
    await scored(coordinator, 0.7, 0.9)
    registry = RegistryProcess(tmp_path, etcd.endpoint)
    await registry.start(failpoints=f"{point}=1*off->kill")
    await promote(registry, 1)
    with pytest.raises(TesseraError):
        await promote(registry, 2)
    assert await registry.dead() == 137
    await registry.start()
    try:
        found = await live(registry)
        assert (found.version, len(found.before)) == ((2, 1) if moved else (1, 0))
        again = await promote(registry, 2)
        assert (again.unchanged, again.alias.version, len(again.alias.before)) == (moved, 2, 1)
    finally:
        await registry.stop()
