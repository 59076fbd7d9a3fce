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
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, TrustDomain, checked_name, domain_tag

HOST = "127.0.0.1"
DEFAULT_PORT_BASE = 8000
MAX_NODES = 16
MAX_DOMAINS = 8
DOMAIN_PORTS = 100
"""How far the gateways of two trust domains are apart."""
MAX_PORT_BASE = 65535 - MAX_DOMAINS * DOMAIN_PORTS
RUN_PREFIX = "tessera-"
GATEWAY = "gateway"

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
    """One platform. On each node every one of its trust domains has a tensor store with a budget of `store_bytes`, and a gateway for all.

    `run_folder` is where a platform that is known already has its sockets; None: where a new one would have them. `more_nodes`: how many
    may be added while the load asks for them.
    """

    state: Path
    port_base: int = DEFAULT_PORT_BASE
    nodes: int = 1
    store_bytes: int = 4 << 30
    sharing: bool = True
    otlp_endpoint: str = ""
    run_folder: Path | None = None
    domains: tuple[str, ...] = (DEFAULT_TRUST_DOMAIN,)
    more_nodes: int = 0

    def __post_init__(self) -> None:
        if not 1024 <= self.port_base <= MAX_PORT_BASE:
            raise InvalidInput("--port-base", self.port_base, f"must be from 1024 to {MAX_PORT_BASE}")
        if not 1 <= self.nodes <= MAX_NODES:
            raise InvalidInput("--nodes", self.nodes, f"must be from 1 to {MAX_NODES}")
        if not 0 <= self.more_nodes <= MAX_NODES:
            raise InvalidInput("--more-nodes", self.more_nodes, f"must be from 0 to {MAX_NODES}")
        for name in self.domains:
            checked_name("--trust-domain", name)
            if self.domains.count(name) > 1:
                raise InvalidInput("--trust-domain", name, "must be given once")
        if not 1 <= len(self.domains) <= MAX_DOMAINS:
            raise InvalidInput("--trust-domain", len(self.domains), f"must be given at most {MAX_DOMAINS} times")

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

    def gateways(self) -> dict[str, tuple[str, str, str]]:
        """Trust domain -> where its gateway answers over gRPC, gives metrics, and takes admin calls; the first domain's at the base."""
        return {
            name: (self.address(offset + 1), self.address(offset + 2), self.address(offset + 3))
            for name, offset in zip(self.domains, range(0, MAX_DOMAINS * DOMAIN_PORTS, DOMAIN_PORTS), strict=False)
        }

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
        words = [
            f"gRPC (Open Inference) on {endpoint}, metrics on {metrics}, admin on {admin}"
            for endpoint, metrics, admin in self.gateways().values()
        ]
        return words[0] if len(words) == 1 else "\n".join(f"{name}: {door}" for name, door in zip(self.domains, words, strict=True))

    @property
    def down_command(self) -> str:
        """What takes it down, to be copied into a shell."""
        return "tessera down" + ("" if self.state == default_state_folder() else f" --state {shlex.quote(str(self.state))}")

    def node_run(self, index: int) -> Path:
        return self.run / f"n{index}"

    def stores(self) -> list[Path]:
        """Each node's mount points for its tensor stores; where mounting is not allowed, /dev/shm has a folder for its only one."""
        return [self.node_run(index) / f"store-{domain_tag(TrustDomain(name))}" for index in range(self.nodes) for name in self.domains]

    @property
    def config(self) -> Path:
        """The configuration files of the services."""
        return self.state / "config"

    @property
    def added(self) -> Path:
        """Where nodes that were added keep their files."""
        return self.state / "added"

    def _node_pool(self) -> Settings:
        """The scheduler's settings for nodes that come and go with the load: copies of the first one."""
        if not self.more_nodes:
            return {}
        return {
            "node_provider": "local",
            "node_template": str(self.config / "node-agent-0.yaml"),
            "node_folder": str(self.added),
            "most_added_nodes": self.more_nodes,
        }

    @property
    def etcd_data(self) -> Path:
        return self.state / "etcd"

    def ports(self) -> dict[int, str]:
        """Every port that will be opened, and by whom."""
        taken = {10: "registry", 11: "scheduler", 12: "profiler"}
        for index in range(len(self.domains)):
            name, offset = self._gateway(index), index * DOMAIN_PORTS
            taken |= {offset + 1: f"{name} (gRPC)", offset + 2: f"{name} (metrics)", offset + 3: f"{name} (admin)"}
        taken |= {13: "scheduler (standby)", 14: "scheduler (starts)", 15: "scheduler (standby, starts)", 90: "etcd", 91: "etcd (peers)"}
        for index in range(self.nodes):
            taken |= {20 + 2 * index: f"node agent {index}", 21 + 2 * index: f"relay {index}"}
            taken |= {60 + index: f"node agent {index} (starts)", 110 + index: f"node agent {index} (peers)"}
        return {self.port_base + offset: name for offset, name in taken.items()}

    def services(self) -> dict[str, tuple[str, Settings]]:
        """Process name -> (module, settings), in the order of starting."""
        common: Settings = {"etcd_endpoints": [self.etcd_address]}
        domains: Settings = {"trust_domains": list(self.domains)}
        if self.otlp_endpoint:
            common["otlp_endpoint"] = self.otlp_endpoint
        found: dict[str, tuple[str, Settings]] = {
            "registry": ("tessera.registry", {
                **common, **domains, "address": self.address(10), "repository_url": self.repository_url,
                "state_folder": str(self.state / "registry"),
            }),
            "scheduler": ("tessera.scheduler", {
                **common, **domains, "address": self.address(11), "start_address": self.address(14), "repository_url": self.repository_url,
                **self._node_pool(),
            }),
            "scheduler-standby": ("tessera.scheduler", {
                **common, **domains, "address": self.address(13), "start_address": self.address(15), "repository_url": self.repository_url,
                **self._node_pool(),
            }),
            "profiler": ("tessera.profiler", {
                **common, **domains, "address": self.address(12), "batch_folder": str(self.state / "batch"),
            }),
        }  # fmt: skip
        for index in range(self.nodes):
            found[f"node-agent-{index}"] = ("tessera.node_agent", {
                **common,
                "node_id": f"node-{index}",
                "address": self.address(20 + 2 * index),
                "start_address": self.address(60 + index),
                "relay_address": self.address(21 + 2 * index),
                "peer_address": self.address(110 + index),
                "state_folder": str(self.state / f"node-{index}"),
                "run_folder": str(self.node_run(index)),
                "repository_url": self.repository_url,
                "stores": [{"trust_domain": name, "budget_bytes": self.store_bytes} for name in self.domains],
                "sharing": self.sharing,
                "runtime_threads": self.runtime_threads,
            })  # fmt: skip
        for index, (name, (endpoint, metrics, admin)) in enumerate(self.gateways().items()):
            found[self._gateway(index)] = ("tessera.gateway", {
                **common, "address": endpoint, "metrics_address": metrics, "admin_address": admin, "token_file": str(self.token_file),
                "trust_domain": name,
            })  # fmt: skip
        return found

    def _gateway(self, index: int) -> str:
        """The name of the process: the first domain's is plain."""
        return f"{GATEWAY}-{self.domains[index]}" if index else GATEWAY

    def command(self, name: str, module: str) -> list[str]:
        return [sys.executable, "-m", module, "--config", str(self.config / f"{name}.yaml")]
