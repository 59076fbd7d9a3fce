"""Where everything of an embedded platform lies, and the configuration of each of its processes. Values only."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, domain_tag

HOST = "127.0.0.1"
DEFAULT_PORT_BASE = 8000
MAX_NODES = 16
MAX_PORT_BASE = 65535 - 100
RUN_PREFIX = "tessera-"

Settings = dict[str, Any]


def default_state_folder() -> Path:
    """`TESSERA_STATE`, else `tessera` in the user's state home."""
    given = os.environ.get("TESSERA_STATE")
    if given:
        return Path(given).expanduser().resolve()
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return (Path(home).expanduser() / "tessera").resolve()


def run_folder_of(state: Path) -> Path:
    """A short folder for sockets (AF_UNIX paths end at 108 bytes), the same one for the same state folder and TMPDIR.

    Not below XDG_RUNTIME_DIR: that folder goes when its user logs out, and a detached platform goes on.
    """
    name = RUN_PREFIX + hashlib.sha256(os.fsencode(state)).hexdigest()[:10]
    folder = Path(tempfile.gettempdir()) / name
    return folder if len(os.fsencode(folder)) <= 48 else Path("/tmp") / name


@dataclass(frozen=True)
class Layout:
    """One platform. `store_bytes` is each node's budget for its tensor store.

    `run_folder` is where a platform that is known already has its sockets; None: where a new one would have them.
    """

    state: Path
    port_base: int = DEFAULT_PORT_BASE
    nodes: int = 1
    store_bytes: int = 4 << 30
    sharing: bool = True
    otlp_endpoint: str = ""
    run_folder: Path | None = None

    def __post_init__(self) -> None:
        if not 1024 <= self.port_base <= MAX_PORT_BASE:
            raise InvalidInput("--port-base", self.port_base, f"must be from 1024 to {MAX_PORT_BASE}")
        if not 1 <= self.nodes <= MAX_NODES:
            raise InvalidInput("--nodes", self.nodes, f"must be from 1 to {MAX_NODES}")

    @property
    def run(self) -> Path:
        return self.run_folder or run_folder_of(self.state)

    @property
    def token_file(self) -> Path:
        return self.state / "token"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def repository_url(self) -> str:
        return f"file://{self.state / 'repository'}"

    @property
    def runtime_threads(self) -> int:
        """Intra-op threads of each runtime: the node's share of the cores, four at most."""
        return max(1, min(4, len(os.sched_getaffinity(0)) // self.nodes))

    def address(self, offset: int) -> str:
        return f"{HOST}:{self.port_base + offset}"

    @property
    def endpoint(self) -> str:
        return self.address(1)

    @property
    def metrics_address(self) -> str:
        return self.address(2)

    @property
    def admin_endpoint(self) -> str:
        return self.address(3)

    @property
    def etcd_client_port(self) -> int:
        return self.port_base + 90

    @property
    def etcd_peer_port(self) -> int:
        return self.port_base + 91

    @property
    def etcd_address(self) -> str:
        return f"{HOST}:{self.etcd_client_port}"

    @property
    def doors(self) -> str:
        """Where to call it, in words."""
        return f"gRPC (Open Inference) on {self.endpoint}, metrics on {self.metrics_address}, admin on {self.admin_endpoint}"

    @property
    def down_command(self) -> str:
        """What takes it down, to be copied into a shell."""
        return "tessera down" + ("" if self.state == default_state_folder() else f" --state {shlex.quote(str(self.state))}")

    def node_run(self, index: int) -> Path:
        return self.run / f"n{index}"

    def stores(self) -> list[Path]:
        """Each node's mount point for its tensor store; where mounting is not allowed, a folder of /dev/shm stands in for it."""
        return [self.node_run(index) / f"store-{domain_tag(DEFAULT_TRUST_DOMAIN)}" for index in range(self.nodes)]

    @property
    def config(self) -> Path:
        """The configuration files of the services."""
        return self.state / "config"

    @property
    def etcd_data(self) -> Path:
        return self.state / "etcd"

    def ports(self) -> dict[int, str]:
        """Every port that will be opened, and by whom."""
        taken = {1: "gateway (gRPC)", 2: "gateway (metrics)", 3: "gateway (admin)", 10: "registry", 11: "scheduler", 12: "profiler"}
        taken |= {13: "scheduler (standby)", 14: "scheduler (starts)", 15: "scheduler (standby, starts)", 90: "etcd", 91: "etcd (peers)"}
        for index in range(self.nodes):
            taken |= {20 + 2 * index: f"node agent {index}", 21 + 2 * index: f"relay {index}", 60 + index: f"node agent {index} (starts)"}
        return {self.port_base + offset: name for offset, name in taken.items()}

    def services(self) -> dict[str, tuple[str, Settings]]:
        """Process name -> (module, settings), in the order of starting."""
        common: Settings = {"etcd_endpoints": [self.etcd_address]}
        if self.otlp_endpoint:
            common["otlp_endpoint"] = self.otlp_endpoint
        found: dict[str, tuple[str, Settings]] = {
            "registry": ("tessera.registry", {
                **common, "address": self.address(10), "repository_url": self.repository_url, "state_folder": str(self.state / "registry"),
            }),
            "scheduler": ("tessera.scheduler", {
                **common, "address": self.address(11), "start_address": self.address(14), "repository_url": self.repository_url,
            }),
            "scheduler-standby": ("tessera.scheduler", {
                **common, "address": self.address(13), "start_address": self.address(15), "repository_url": self.repository_url,
            }),
            "profiler": ("tessera.profiler", {**common, "address": self.address(12)}),
        }  # fmt: skip
        for index in range(self.nodes):
            found[f"node-agent-{index}"] = ("tessera.node_agent", {
                **common,
                "node_id": f"node-{index}",
                "address": self.address(20 + 2 * index),
                "start_address": self.address(60 + index),
                "relay_address": self.address(21 + 2 * index),
                "state_folder": str(self.state / f"node-{index}"),
                "run_folder": str(self.node_run(index)),
                "repository_url": self.repository_url,
                "stores": [{"trust_domain": DEFAULT_TRUST_DOMAIN, "budget_bytes": self.store_bytes}],
                "sharing": self.sharing,
                "runtime_threads": self.runtime_threads,
            })  # fmt: skip
        found["gateway"] = ("tessera.gateway", {
            **common, "address": self.endpoint, "metrics_address": self.metrics_address, "admin_address": self.admin_endpoint,
            "token_file": str(self.token_file),
        })  # fmt: skip
        return found

    def command(self, name: str, module: str) -> list[str]:
        return [sys.executable, "-m", module, "--config", str(self.config / f"{name}.yaml")]
