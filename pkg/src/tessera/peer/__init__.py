"""The peer stream: one node agent takes blobs out of another's store, by digest. A protocol of its own over TCP (docs/adr/0008)."""

from tessera.peer.client import Peers, PeerSettings
from tessera.peer.server import PeerServer, ServerLimits

__all__ = ["PeerServer", "PeerSettings", "Peers", "ServerLimits"]
