"""This node's two ends of the peer stream, as configured."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.clock import Clock
from tessera.domain.ids import NodeId, TrustDomain
from tessera.node_agent.adapters.stores import OpenStore
from tessera.node_agent.config import NodeAgentConfig
from tessera.peer import Peers, PeerServer, PeerSettings, ServerLimits
from tessera.peer.connection import StreamLimits


def peer_server(config: NodeAgentConfig, stores: Sequence[OpenStore]) -> PeerServer:
    """Started; gives out what is in the store of the trust domain that is asked for, and only to that one.

    Raises:
        FailedPrecondition: the address is in use.
    """
    by_domain = {opened.trust_domain: opened.store for opened in stores}
    server = PeerServer(config.peer_address, NodeId(config.node_id), by_domain.get, ServerLimits(connections=config.peer_connections))
    server.start()
    return server


def peers(config: NodeAgentConfig, trust_domain: TrustDomain, clock: Clock) -> Peers:
    """Where the store of this trust domain gets blobs from."""
    limits = StreamLimits(stall_s=config.peer_stall_s)
    return Peers(NodeId(config.node_id), trust_domain, clock, PeerSettings(streams=config.fetch_concurrency, limits=limits))
