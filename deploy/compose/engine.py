"""What the engine knows about a Compose project: containers, volumes, networks, added nodes, and runtimes' containers on its volumes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
RUNTIME_LABEL = "tessera.runtime-id"
POOL_LABEL = "tessera.node-pool"


class EngineError(Exception):
    """The engine or Compose refused; the message has its words."""


@dataclass(frozen=True)
class Container:
    """`status` as `docker ps` says it, e.g. `Up 3 seconds (healthy)`."""

    service: str
    container_id: str
    status: str

    @property
    def healthy(self) -> bool:
        return self.status.startswith("Up") and "(healthy)" in self.status


def docker(*words: str) -> str:
    """Raises: EngineError."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError(f"docker {' '.join(words[:2])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def socket_group() -> int:
    """The group that may use the engine's socket, as its number.

    Raises:
        EngineError: the engine is not behind a socket of this machine, which node agents could be given.
    """
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    path = Path(host.removeprefix("unix://"))
    if not host.startswith("unix://") or not path.is_socket():
        raise EngineError(f"{host} is no socket of this machine; `make engine` starts an engine where one is root")
    return path.stat().st_gid


def containers(project: str) -> list[Container]:
    """Of the project's services, ended ones too."""
    form = f'{{{{.Label "{SERVICE_LABEL}"}}}}\t{{{{.ID}}}}\t{{{{.Status}}}}'
    lines = docker("ps", "-a", "--filter", f"label={PROJECT_LABEL}={project}", "--format", form).splitlines()
    return sorted((Container(*line.split("\t")) for line in lines), key=lambda container: container.service)


def runtimes(project: str) -> list[str]:
    """Ids of the containers that the project's node agents made: those with one of its volumes. Ended ones too."""
    found: dict[str, None] = {}
    for volume in volumes(project):
        found |= dict.fromkeys(_lines("ps", "-aq", "--filter", f"label={RUNTIME_LABEL}", "--filter", f"volume={volume}"))
    return list(found)


def volumes(project: str) -> list[str]:
    labels = (f"{PROJECT_LABEL}={project}", _pool_label(project))
    return [name for label in labels for name in _lines("volume", "ls", "-q", "--filter", f"label={label}")]


def pooled(project: str) -> list[str]:
    """Ids of the containers that the project's schedulers added as nodes (compose.pool.yaml). Ended ones too."""
    return _lines("ps", "-aq", "--filter", f"label={_pool_label(project)}")


def networks(project: str) -> list[str]:
    return _lines("network", "ls", "--filter", f"label={PROJECT_LABEL}={project}", "--format", "{{.Name}}")


def remove(ids: Iterable[str]) -> None:
    for each in ids:
        docker("rm", "-f", "-v", each)


def stop(ids: Iterable[str]) -> None:
    for each in ids:
        docker("stop", "-t", "30", each)


def left_of(project: str) -> list[str]:
    """All that the engine still has of a project, in words; [] when nothing is."""
    found = [f"container {each.service} ({each.status})" for each in containers(project)]
    found += [f"runtime container {each}" for each in runtimes(project)]
    found += [f"node container {each}" for each in pooled(project)]
    found += [f"volume {name}" for name in volumes(project)]
    found += [f"network {name}" for name in networks(project)]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [f"mount {line.split()[1]}" for line in mounts if f"/volumes/{project}_" in line]
    return found


def _pool_label(project: str) -> str:
    return f"{POOL_LABEL}={project}-node-a"


def _lines(*words: str) -> list[str]:
    return docker(*words).split()
