"""The artifact of a variant: its graph, and which tensor goes where. No weights in it.

An artifact is stored as canonical JSON under its own digest. Its graph is a second blob; variants of siblings share it (the graph
digest is over structure and integer shape constants alone). Its small tensors travel in a third blob, the pack (64-byte
aligned); every large tensor is a blob of its own, so that siblings share it by digest.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.domain.ids import BuildClass, Digest
from tessera.domain.signature import Signature

PACK_THRESHOLD_BYTES = 4096
"""Tensors shorter than this travel in the pack (docs/adr/0003)."""

PACK_ALIGNMENT_BYTES = 64

PREPACKED = "prepacked"
"""Option: weights are laid out anew for the CPU's kernels when it is opened. Faster where matrix products or int8 prevail;
opening takes longer, and the laid-out copies are private memory."""

AUTOCAST = "autocast"
"""Option of backend `aten`: products and convolutions run in bfloat16, whatever type their operands come in."""

ALONE = "alone"
"""Option of every backend: rows of a batch change one another's answers, so that no request is joined with another one. A request with
several rows is one run all the same."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Content-addressed bytes: BLAKE3 digest and length."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor of the graph finds its bytes. dtype (Open Inference names) and shape live here and are checked at bind.

    `pack_offset` is the byte offset in the artifact's pack, or None when the tensor is a blob of its own.
    """

    slot: str
    dtype: str
    shape: tuple[int, ...]
    digest: Digest
    size_bytes: int
    pack_offset: int | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """One servable build. `backend` names the runtime's backend ("aten", "ort", "identity") or "onnx" for an export to be baked.

    `build_class` is None where the build runs everywhere (`aten-fp32`); `dialect` is "aten" or "onnx" (the graph's), "" for identity.
    `options`: words that its backend reads when it opens it; the backend refuses one that it does not know. `ALONE` is its runtime's.
    """

    backend: str
    precision: str
    dialect: str
    graph: Blob | None
    pack: Blob | None
    tensors: tuple[TensorRef, ...]
    signature: Signature
    build_class: BuildClass | None
    max_batch: int
    options: tuple[str, ...] = ()
    format: int = 1

    def large_tensors(self) -> tuple[TensorRef, ...]:
        return tuple(ref for ref in self.tensors if ref.pack_offset is None)

    def blobs(self) -> tuple[Blob, ...]:
        """Every blob that a node needs, each once: graph, pack, large tensors. The artifact's own blob is not among them."""
        found = {ref.digest: Blob(ref.digest, ref.size_bytes) for ref in self.large_tensors()}
        for blob in (self.graph, self.pack):
            if blob is not None:
                found[blob.digest] = blob
        return tuple(found.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of distinct large tensors plus the pack."""
        large = {ref.digest: ref.size_bytes for ref in self.large_tensors()}
        return sum(large.values()) + (self.pack.size_bytes if self.pack else 0)
