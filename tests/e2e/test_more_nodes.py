"""Nodes that were added to a platform serve like any other, and go down with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from e2e_platform import Platform, until

from tessera.clock import SystemClock
from tessera.domain.ids import NodeId
from tessera.scheduler.adapters.local_nodes import LocalNodes


def test_an_added_node_goes_down_with_the_platform(tmp_path: Path) -> None:
    platform = Platform(tmp_path / "state", store="64M", more_nodes=1)
    platform.up()
    try:
        layout = platform.layout
        settings = platform.json("config", "show")
        assert {settings[name]["node_provider"] for name in ("scheduler", "scheduler-standby")} == {"local"}
        # As the scheduler's leader does it; it finds the node in the folder that they share.
        provider = LocalNodes(layout.config / "node-agent-0.yaml", layout.added, "extra", SystemClock())
        assert asyncio.run(provider.add()) == "extra-0"
        with platform.client() as client:
            until(lambda: {node.node_id for node in client.nodes()} == {"node-0", "extra-0"}, "both nodes are known")
            until(lambda: all(service.ready for service in client.platform().services), "and ready")
        done = platform.down()
        assert (done.returncode, platform.leftovers()) == (0, []), done.stderr
        assert "down; no process, socket, lease or tmpfs file is left" in done.stderr
        assert not layout.added.exists()
        asyncio.run(provider.remove(NodeId("extra-0")))  # its process was a child of this one
    finally:
        platform.end()
