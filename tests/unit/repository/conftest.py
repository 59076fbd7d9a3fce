from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.repository import Repository
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import StepClock


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository((tmp_path / "repository").as_uri())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalTensorStore]:
    with LocalTensorStore(tmp_path / "store", 64 << 20, StepClock()) as store:
        yield store
        assert store.check(deep=True) == []
