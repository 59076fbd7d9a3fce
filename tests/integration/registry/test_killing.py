"""kill -9 of the registry in the middle: the job is resumed, or nothing is left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest
from registry_process import BakingNode, RegistryProcess, joined

from tessera.api.registry.v1 import registry_pb2
from tessera.clock import SystemClock
from tessera.coord import keys
from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.domain.errors import TesseraError
from tessera.domain.ids import Digest, TrustDomain
from tessera.runtime.classes import build_class

BERT = registry_pb2.BuilderSource(
    reference="tessera.registry.builders:bert", arguments={"hidden": "64", "layers": "1", "heads": "2", "vocabulary": "100"}, seed=3
)
JOBS = keys.jobs(TrustDomain("default"))


async def until(check: Any, seconds: float = 90.0) -> None:
    clock = SystemClock()
    async with asyncio.timeout(seconds):
        while not await check():
            await clock.sleep(0.05)


def sandboxes(registry: RegistryProcess) -> list[psutil.Process]:
    assert registry.process is not None
    return psutil.Process(registry.process.pid).children()


@pytest.mark.parametrize("point", ["registry.store_blob=2*off->kill", "registry.before_commit=kill", "registry.after_commit=kill"])
async def test_killed_at_a_point_it_goes_on_after_the_restart(
    tmp_path: Path, etcd: EtcdProcess, coordinator: EtcdCoordinator, point: str
) -> None:
    registry = RegistryProcess(tmp_path, etcd.endpoint)
    await registry.start(failpoints=point)
    with pytest.raises(TesseraError):
        await registry.register("m", BERT)
    assert await registry.dead() == 137
    assert len((await coordinator.list(JOBS)).items) == 1
    await registry.start()
    try:
        async with joined(BakingNode(registry.repository, tmp_path / "node", build_class()), "n1", coordinator):

            async def done() -> bool:
                return not (await coordinator.list(JOBS)).items

            await until(done)
        model = await registry.model("m")
        assert [v.version for v in model.versions] == [1]
        assert {v.key.variant: v.state for v in model.versions[0].variants} == {"aten-fp32": "ready", "ort-fp32": "ready"}
        assert (await registry.register("m", BERT))[-1].result.unchanged
        await registry.stub.DeleteModel(registry_pb2.DeleteModelRequest(name="m"))
        assert [size for _, size in registry.repository.digests()] == [
            len(registry.repository.read(Digest((await registry.model("identity")).versions[0].variants[0].artifact_digest)))
        ]
    finally:
        await registry.stop()


async def test_killed_inside_the_sandbox_takes_it_along_and_goes_on(
    tmp_path: Path, etcd: EtcdProcess, coordinator: EtcdCoordinator
) -> None:
    registry = RegistryProcess(tmp_path, etcd.endpoint)
    await registry.start()
    task = asyncio.create_task(registry.register("m", BERT))
    await until(lambda: _any(sandboxes, registry))
    (running,) = sandboxes(registry)
    await registry.kill()
    with pytest.raises(TesseraError):
        await task
    await asyncio.to_thread(psutil.wait_procs, [running], 10)
    assert not running.is_running()
    await registry.start()
    try:

        async def there() -> bool:
            listed = await registry.stub.ListModels(registry_pb2.ListModelsRequest())
            return "m" in [m.name for m in listed.models]

        await until(there)
        assert (await registry.register("m", BERT))[-1].result.unchanged
    finally:
        await registry.stop()


async def _any(found: Any, of: Any) -> bool:
    return bool(found(of))


async def test_job_whose_files_are_gone_leaves_nothing(tmp_path: Path, etcd: EtcdProcess, coordinator: EtcdCoordinator) -> None:
    registry = RegistryProcess(tmp_path, etcd.endpoint)
    await registry.start(failpoints="registry.before_import=kill")
    with pytest.raises(TesseraError):
        await registry.register("m", {"m.pt2": b"x" * 1000})
    assert await registry.dead() == 137
    for path in (registry.state / "uploads").rglob("*"):
        if path.is_file():
            path.unlink()
    await registry.start()
    try:

        async def done() -> bool:
            return not (await coordinator.list(JOBS)).items

        await until(done)
        listed = await registry.stub.ListModels(registry_pb2.ListModelsRequest())
        assert [m.name for m in listed.models] == ["identity"]
        assert len(list(registry.repository.digests())) == 1
    finally:
        await registry.stop()


async def test_second_registry_on_one_state_folder_is_refused(registry: RegistryProcess, etcd: EtcdProcess, tmp_path: Path) -> None:
    other = RegistryProcess(tmp_path, etcd.endpoint)
    with pytest.raises(AssertionError, match="is used by another registry"):
        await other.start()
    await other._close()


async def test_etcd_away_while_the_import_ends(tmp_path: Path, etcd: EtcdProcess, coordinator: EtcdCoordinator) -> None:
    registry = RegistryProcess(tmp_path, etcd.endpoint)
    await registry.start()
    try:
        task = asyncio.create_task(registry.register("m", BERT))
        await until(lambda: _any(sandboxes, registry))
        await etcd.stop()
        await until(lambda: _none(sandboxes, registry))
        await SystemClock().sleep(1.0)
        await etcd.start()
        assert (await task)[-1].step == "registered"
    finally:
        await registry.stop()


async def _none(found: Any, of: Any) -> bool:
    return not found(of)
