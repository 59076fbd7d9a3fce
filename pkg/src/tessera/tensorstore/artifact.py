"""Artifacts as bytes: canonical JSON, checked in full on the way in. Used by the registry, node agents and runtimes alike."""

from __future__ import annotations

import math
import re

import msgspec
from blake3 import blake3

from tessera.domain.artifact import PACK_ALIGNMENT_BYTES, Artifact, Blob, TensorRef
from tessera.domain.errors import DataCorrupted, InvalidInput, Unsupported
from tessera.domain.ids import Digest
from tessera.domain.signature import DATATYPES

ARTIFACT_FORMAT = 1

_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(Artifact)
_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """BLAKE3 of bytes, as they are named everywhere: 64 lowercase hex digits."""
    return Digest(blake3(data).hexdigest())


def encode(artifact: Artifact) -> bytes:
    """Canonical JSON: the same artifact always gives the same bytes, hence the same digest.

    Raises:
        InvalidInput: the artifact contradicts itself; names the field.
    """
    problem = _problem(artifact)
    if problem is not None:
        raise InvalidInput("artifact", None, problem)
    return _ENCODER.encode(artifact)


def decode(data: bytes | memoryview) -> Artifact:
    """Reads an artifact.

    Raises:
        DataCorrupted: it is no artifact, or contradicts itself; names what does not fit.
        Unsupported: it was written in a later format.
    """
    try:
        artifact = _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise DataCorrupted(f"Artifact: {error}") from error
    if artifact.format != ARTIFACT_FORMAT:
        raise Unsupported(f"artifact of format {artifact.format}; this version reads {ARTIFACT_FORMAT}: register the model again")
    problem = _problem(artifact)
    if problem is not None:
        raise DataCorrupted(f"Artifact: {problem}")
    return artifact


def _problem(artifact: Artifact) -> str | None:
    """What is wrong with it, in words, or None. Bounds are checked here so that readers may trust offsets and lengths."""
    if artifact.max_batch < 1:
        return f"max_batch {artifact.max_batch} must be at least 1"
    for name, blob in (("graph", artifact.graph), ("pack", artifact.pack)):
        if blob is not None and (problem := _blob_problem(name, blob)):
            return problem
    slots = set()
    for ref in artifact.tensors:
        if ref.slot in slots:
            return f"tensor {ref.slot} is there twice"
        slots.add(ref.slot)
        if problem := _tensor_problem(ref, artifact.pack):
            return f"tensor {ref.slot}: {problem}"
    return None


def _blob_problem(name: str, blob: Blob) -> str | None:
    if not _DIGEST.fullmatch(blob.digest):
        return f"{name} digest {blob.digest[:80]!r} must be 64 lowercase hex digits"
    if blob.size_bytes < 0:
        return f"{name} size_bytes {blob.size_bytes} must not be negative"
    return None


def _tensor_problem(ref: TensorRef, pack: Blob | None) -> str | None:
    if not _DIGEST.fullmatch(ref.digest):
        return f"digest {ref.digest[:80]!r} must be 64 lowercase hex digits"
    item_bytes = DATATYPES.get(ref.dtype)
    if not item_bytes:
        return f"dtype {ref.dtype!r} has no fixed size or is unknown"
    if ref.shape and min(ref.shape) < 0:
        return f"shape {list(ref.shape)} must not have negative dimensions"
    if math.prod(ref.shape) * item_bytes != ref.size_bytes:
        return f"{ref.dtype} of shape {list(ref.shape)} is not {ref.size_bytes} bytes long"
    if ref.pack_offset is None:
        return None
    if pack is None:
        return f"lies at {ref.pack_offset} of a pack that is not there"
    if ref.pack_offset < 0 or ref.pack_offset % PACK_ALIGNMENT_BYTES:
        return f"pack_offset {ref.pack_offset} must be a multiple of {PACK_ALIGNMENT_BYTES}"
    if ref.pack_offset + ref.size_bytes > pack.size_bytes:
        return f"ends at {ref.pack_offset + ref.size_bytes} of a pack of {pack.size_bytes} bytes"
    return None
