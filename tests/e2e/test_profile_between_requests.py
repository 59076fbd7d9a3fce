"""A profile run on a node that is never left alone for a second."""

from __future__ import annotations

from pathlib import Path

import e2e_models
from e2e_load import Load
from e2e_platform import Platform

from tessera.sdk import Client


def test_a_profile_is_measured_between_requests(platform: Platform, client: Client, net: e2e_models.Net, tmp_path: Path) -> None:
    source = e2e_models.save(e2e_models.Net(5, width=128), e2e_models.IMAGE, tmp_path / "between.pt2")
    client.register("between", source, wait=True)
    with Load(platform, "net", net, threads=1, pause_s=0.8) as load:
        before = load.answered
        messages = [progress.message for progress in client.run_profile("between", variant="ort-fp32", quick=True)]
        during = load.answered - before
    (profile,) = client.profiles("between")
    (row,) = profile.rows
    assert row.repeats >= 5
    assert 0 < row.p50_ms <= row.p99_ms
    assert any("waiting while the node answers requests" in message for message in messages)
    assert load.errors == []
    assert during >= 3, "it was measured among requests"
