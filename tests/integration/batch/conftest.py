from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from batch_bench import Bench

from tessera.coord.binary import EtcdProcess
from tessera.testing.etcd import running_etcd
from tessera.testing.s3 import CREDENTIALS, running_s3


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path) as process:
        yield process


@pytest.fixture
async def bench(etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(etcd, tmp_path)
    try:
        await found.start()
        yield found
    finally:
        await found.close()


@pytest.fixture
def s3_endpoint() -> Iterator[str]:
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture
async def s3_bench(etcd: EtcdProcess, tmp_path: Path, s3_endpoint: str) -> AsyncIterator[Bench]:
    """Its profiler may read and write below s3://models/jobs/default."""
    found = Bench(etcd, tmp_path)
    found.environment = CREDENTIALS
    found.profiler_settings = {
        "batch_roots": ["s3://models/jobs/{trust_domain}"],
        "batch_options": {"s3": {"endpoint_url": s3_endpoint}},
    }
    try:
        await found.start()
        yield found
    finally:
        await found.close()
