"""Which nodes a start shall take its missing bytes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tessera.domain.artifact import Blob
from tessera.domain.ids import Digest, NodeId
from tessera.domain.source import Source

MAX_SOURCES = 4


@dataclass(frozen=True, slots=True)
class Holding:
    """What one node's store of the trust domain in question has. `load`: instances that it holds or is starting."""

    node_id: NodeId
    peer_address: str
    digests: frozenset[Digest]
    load: int


def sources_of(artifact: Digest, blobs: Sequence[Blob] | None, target: NodeId, holdings: Iterable[Holding]) -> tuple[Source, ...]:
    """Other nodes that have bytes that `target` lacks: those with the most first, of equal ones the least loaded, four at most.

    `blobs` are the artifact's, itself among them; None where its list is not known: then whoever has the artifact is taken to have what
    it names.
    """
    found = list(holdings)
    here = next((holding.digests for holding in found if holding.node_id == target), frozenset[Digest]())
    missing = {blob.digest: blob.size_bytes for blob in blobs if blob.digest not in here} if blobs is not None else {artifact: 1}
    if not missing:
        return ()
    ranked = sorted(
        (-bytes_there, holding.load, holding.node_id, holding)
        for holding in found
        if holding.node_id != target
        and holding.peer_address
        and (bytes_there := sum(size for digest, size in missing.items() if digest in holding.digests))
    )
    return tuple(Source(holding.node_id, holding.peer_address) for *_, holding in ranked[:MAX_SOURCES])
