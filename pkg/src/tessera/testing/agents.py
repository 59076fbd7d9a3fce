"""Node agents as processes of a test: their settings, and what they have running."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from tessera.testing.etcd import free_port


def agent_settings(folder: Path, run: Path, etcd: str) -> Path:
    """A file with the settings of node n1 below `folder`, sockets below `run`; other nodes can be copies of it."""
    where = {name: f"127.0.0.1:{free_port()}" for name in ("address", "start_address", "relay_address", "peer_address")}
    settings = {
        **where, "node_id": "n1", "etcd_endpoints": [etcd], "lease_ttl_s": 2.0, "repository_url": f"file://{folder / 'repository'}",
        "state_folder": str(folder / "n1"), "run_folder": str(run / "n1"), "stores": [{"budget_bytes": 16 << 20}], "flavours": ["ort"],
    }  # fmt: skip
    path = folder / "agent.yaml"
    path.write_text(json.dumps(settings))
    return path


def below(folder: Path) -> list[psutil.Process]:
    """Everything whose command line names the folder or what is in it."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(word.startswith(str(folder)) for word in words):
            found.append(process)
    return found
