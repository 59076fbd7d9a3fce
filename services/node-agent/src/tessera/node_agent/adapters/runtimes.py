"""Which runtimes a node has: processes of its own, or containers. Only in container mode is an engine touched."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tessera.clock import Clock
from tessera.domain.ids import TrustDomain
from tessera.node_agent.adapters.process_runtimes import ProcessRuntimes
from tessera.node_agent.config import NodeAgentConfig
from tessera.node_agent.ports import Runtimes
from tessera.program import Tasks


def make_runtimes(
    config: NodeAgentConfig,
    folder: Path,
    store_root: Path,
    logs: Path,
    trust_domain: TrustDomain,
    served: Iterable[TrustDomain],
    user: int | None,
    clock: Clock,
    tasks: Tasks,
) -> Runtimes:
    """Runtimes of one trust domain, in a folder that is theirs alone. `served` are all domains of the node; they run as `user`, None: as
    this agent's own, unless that is root: a container has no need of what makes a process of another user impossible."""
    if config.runtimes == "process":
        return ProcessRuntimes(
            folder,
            store_root,
            logs,
            config.flavours,
            trust_domain,
            user,
            config.runtime_workers,
            config.batch_delay_us,
            config.load_timeout_s,
            config.sharing,
            config.orphan_s,
            config.zygote_start_s,
            config.idle_after_s,
            clock,
        )
    # Here, not above: a node of processes has no use for an engine's client.
    from tessera.node_agent.adapters.container_runtimes import ContainerRuntimes, ContainerSettings
    from tessera.node_agent.adapters.engine import Engine
    from tessera.node_agent.core.containers import Limits

    if user is None and os.geteuid() == 0:
        user = next(config.user_of(store) for store in config.stores if store.trust_domain == trust_domain)
    settings = ContainerSettings(
        {flavour: config.runtime_images[flavour] for flavour in config.flavours},
        (os.geteuid(), os.getegid()) if user is None else (user, user),
        Limits(config.runtime_memory_bytes, config.runtime_cpus or len(os.sched_getaffinity(0)), config.runtime_pids),
        config.gpus,
        config.runtime_workers,
        config.batch_delay_us,
        config.load_timeout_s,
        config.sharing,
        config.orphan_s,
        config.zygote_start_s,
        config.idle_after_s,
    )
    engine = Engine(config.engine_url)
    return ContainerRuntimes(config.node_id, folder, store_root, trust_domain, frozenset(served), settings, engine, clock, tasks)
