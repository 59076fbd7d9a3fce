"""The soak of transformations in its short form: the same driver that `make soak TRANSFORMATIONS=2000` lets run for minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_transformations import Transformations

COUNT = 40
SEED = 21


@pytest.fixture
def soak(tmp_path: Path) -> Iterator[Transformations]:
    found = Transformations(tmp_path / "state", SEED, shapes=2, siblings=2)
    try:
        yield found
    finally:
        found.end()


@pytest.mark.etcd
def test_models_that_become_each_other_answer_as_fresh_loads_do(soak: Transformations) -> None:
    findings = soak.run(COUNT, rounds=2)
    assert findings == [], f"seed {SEED}: {soak.tally}"
    assert soak.tally.paths["transform"] >= COUNT // 2, str(soak.tally)
