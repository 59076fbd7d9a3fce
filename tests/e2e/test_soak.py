"""The soak in its short form: the same driver that `make soak` lets run for half an hour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_platform import Platform
from e2e_soak import CALM, Models, Soak, prepared

SECONDS = 45.0
SEED = 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Platform, Models]]:
    platform, models = prepared(tmp_path / "state", families=2, members=2)
    try:
        yield platform, models
    finally:
        platform.end()


@pytest.mark.etcd
def test_a_soak_ends_sound(small: tuple[Platform, Models]) -> None:
    platform, models = small
    soak = Soak(platform, models, CALM, SEED)
    findings = soak.run(SECONDS, rounds=3)
    assert findings == [], f"seed {SEED}: {soak.summary()}"
    assert soak.tally.disturbances["stop"] > 10, soak.summary()
    assert soak.tally.paths["bind"] > 10, soak.summary()
