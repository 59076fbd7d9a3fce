"""What an artifact means for this node: which flavour of runtime loads it, and which bytes that runtime maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tessera.domain.artifact import Artifact
from tessera.domain.errors import FailedPrecondition, Unsupported
from tessera.domain.ids import BuildClass, Digest
from tessera.domain.signature import ANY_DATATYPE, Signature, TensorSpec

FLAVOURS = {"aten": "aten", "aoti": "aten", "ort": "ort", "identity": "ort"}
"""Tessera's own backends -> flavour of the runtime that serves them (docs/seams.md)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What loading an artifact takes. `blobs` maps digest to size in bytes of what is pinned for its runtime: everything that the
    artifact names, and the artifact itself (which a runtime reads, but does not hold). `program`: what its backend opens, the graph, or
    the artifact where there is none."""

    artifact: Digest
    program: Digest
    flavour: str
    blobs: dict[Digest, int]
    max_batch: int


def load_of(digest: Digest, size_bytes: int, artifact: Artifact, build_class: BuildClass, flavours: Mapping[str, str] = FLAVOURS) -> Load:
    """What this node has to do for `artifact`, stored as `size_bytes` bytes under `digest`. `flavours`: of every backend that is known.

    Raises:
        Unsupported: no runtime serves its backend.
        FailedPrecondition: it was built for another build class.
    """
    flavour = flavours.get(artifact.backend)
    if flavour is None:
        raise Unsupported(
            f"artifact {digest[:12]}: no runtime serves backend {artifact.backend!r}; known are {', '.join(sorted(flavours))}"
        )
    if artifact.build_class is not None and artifact.build_class != build_class:
        raise FailedPrecondition(f"artifact {digest[:12]} was built for {artifact.build_class}; this node is {build_class}")
    blobs = {blob.digest: blob.size_bytes for blob in artifact.blobs()}
    blobs[digest] = size_bytes
    return Load(digest, artifact.graph.digest if artifact.graph else digest, flavour, blobs, artifact.max_batch)


IDENTITY_MODEL = "identity"


def identity_artifact() -> Artifact:
    """The built-in model `identity`: no graph and no tensors, any datatype and rank (docs/seams.md). It is made, not fetched, where an
    assignment of that model names no artifact."""
    anything = TensorSpec("INPUT0", ANY_DATATYPE, (), any_rank=True), TensorSpec("OUTPUT0", ANY_DATATYPE, (), any_rank=True)
    return Artifact("identity", "any", "", None, None, (), Signature(anything[:1], anything[1:], batched=False), None, 1)
