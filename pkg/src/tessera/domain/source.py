"""A node whose store has blobs that another one lacks."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.domain.ids import NodeId


@dataclass(frozen=True, slots=True)
class Source:
    """`peer_address` (HOST:PORT) is where its agent sends blobs from."""

    node_id: NodeId
    peer_address: str
