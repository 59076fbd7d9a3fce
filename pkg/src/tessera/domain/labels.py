"""Labels on an engine's containers and volumes: how who did not make them knows whose they are."""

from __future__ import annotations

RUNTIME_LABEL = "tessera.runtime-id"
"""On the containers that node agents have the engine make: the runtime's id."""
POOL_LABEL = "tessera.node-pool"
"""On the containers and volumes of a pool's nodes: the name of the container that they are copies of."""
