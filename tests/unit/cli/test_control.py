"""`tessera down` after its supervisor was killed, and what a supervisor is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.cli.embedded import control
from tessera.cli.embedded import state as platform
from tessera.cli.embedded.layout import Layout
from tessera.domain.errors import Unavailable
from tessera.testing import VirtualClock

KILLED = platform.ProcessState("supervisor", 2**22 + 1, 0.0)
"""No process has an id above the kernel's limit."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "state", run_folder=tmp_path / "tessera-run")
    found.state.mkdir()
    platform.PlatformState.of(found, "running", KILLED).save(found.state)
    return found


async def test_leases_are_not_examined_where_etcd_has_ended(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers on its port then is another platform's."""

    async def of_another(address: str) -> list[str]:
        return ["/tessera/default/nodes/node-0"]

    monkeypatch.setattr(control, "leases_left", of_another)
    layout.node_run(0).mkdir(parents=True)
    assert await control.down(layout.state, VirtualClock()) == control.Down(left=[], leases_examined=False)
    assert not layout.run.exists()


async def test_there_is_nothing_to_take_down_twice(layout: Layout) -> None:
    with pytest.raises(Unavailable, match="nothing runs on"):
        await control.down(layout.state, VirtualClock())


def test_a_supervisor_is_told_where_its_sockets_are(layout: Layout) -> None:
    words = control.supervisor_command(layout)
    assert words[words.index("--run-folder") + 1] == str(layout.run)
