from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import BUDGET, StepClock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalTensorStore]:
    with LocalTensorStore(tmp_path / "store", BUDGET, StepClock()) as store:
        yield store
