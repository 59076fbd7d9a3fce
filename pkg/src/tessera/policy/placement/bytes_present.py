"""Placement by bytes: the node that must fetch least, then the least loaded, then the first id.

What counts is the union of all that lies in the node's store of the candidate's trust domain, whoever brought it there: a sibling's
trunk, another precision's embedding, a model of the same family. Two models that together hold all of a third one's tensors make it
free.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera.policy.placement.base import Placement
from tessera.policy.view import Candidate, NodeView


class BytesPresentPlacement:
    @property
    def name(self) -> str:
        return "bytes-present"

    def rank(self, candidate: Candidate, nodes: Sequence[NodeView]) -> tuple[Placement, ...]:
        placements = [place(candidate, node) for node in nodes]
        return tuple(sorted(placements, key=lambda found: (found.bytes_to_wait_for, found.load, found.node_id)))


def place(candidate: Candidate, node: NodeView) -> Placement:
    """Counts a candidate's bytes in a node's store, each digest once."""
    if candidate.blobs is None:
        return _estimate(candidate, node)
    distinct = {blob.digest: blob.size_bytes for blob in candidate.blobs}
    store = node.store(candidate.key.trust_domain)
    present = sum(size for digest, size in distinct.items() if digest in store.digests)
    coming = sum(size for digest, size in distinct.items() if digest in store.coming) if store.coming else 0
    return Placement(node.node_id, present, sum(distinct.values()) - present, node.load, bytes_coming=coming)


def _estimate(candidate: Candidate, node: NodeView) -> Placement:
    """Without the list only the artifact and the graph can be looked for: a node that has both most likely has the tensors too."""
    record = candidate.record
    known = [digest for digest in (record.artifact, record.graph) if digest is not None]
    digests = node.store(candidate.key.trust_domain).digests
    there = bool(known) and all(digest in digests for digest in known)
    present = record.tensor_bytes if there else 0
    return Placement(node.node_id, present, record.tensor_bytes - present, node.load, exact=False)
