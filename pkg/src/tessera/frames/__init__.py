"""Length-prefixed frames between gateways, relays and runtimes (docs/seams.md, docs/adr/0002-data-plane.md).

`codec` is pure, `client` and `server` are asyncio protocols, `openinference` reads and writes Open Inference messages without
copying tensors. Standard library only.
"""

from tessera.frames.client import FrameClient, NeverSent
from tessera.frames.codec import FrameResponse, RequestHeader, Status
from tessera.frames.server import FrameServer

__all__ = ["FrameClient", "FrameResponse", "FrameServer", "NeverSent", "RequestHeader", "Status"]
