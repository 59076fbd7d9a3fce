"""The store's fsck: what memory says against what lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from tessera.domain.ids import Digest
from tessera.tensorstore.local.holds import Holds
from tessera.tensorstore.local.index import BlobIndex
from tessera.tensorstore.local.layout import BLOB_MODE, READ_CHUNK_BYTES, Layout, is_digest, listing


def file_digest(path: Path) -> Digest:
    """BLAKE3 of a file's bytes; reads it in chunks of 1 MiB."""
    hasher = blake3()
    buffer = memoryview(bytearray(READ_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return Digest(hasher.hexdigest())


def check_store(
    layout: Layout, index: BlobIndex, holds: Holds, quarantined: Mapping[Digest, int], writers: set[str]
) -> tuple[list[str], list[Digest]]:
    """Findings in words, and the blobs that look right from outside. The caller holds the store's lock, so nothing moves meanwhile."""
    findings, sound = _check_blobs(layout, index)
    on_disk = {file.name for file in listing(layout.incoming)}
    findings += [f"incoming/{name} has no live writer" for name in sorted(on_disk - writers)]
    findings += [f"incoming/{name} went while its writer lives" for name in sorted(writers - on_disk)]
    kept = {file.name: file.size_bytes for file in listing(layout.quarantine)}
    if kept != quarantined:
        findings.append(f"quarantine/ has {sorted(kept)}, memory says {sorted(quarantined)}")
    for holder, held in sorted(holds.by_holder().items()):
        findings += [f"{holder} holds {digest}, which is not there" for digest in sorted(held) if digest not in index]
        if not held:
            findings.append(f"{holder} is kept without a hold")
    return findings, sound


def _check_blobs(layout: Layout, index: BlobIndex) -> tuple[list[str], list[Digest]]:
    findings, sound = [], []
    on_disk = {file.name: file for file in listing(layout.blobs)}
    for name, file in on_disk.items():
        entry = index.entries.get(Digest(name))
        if not is_digest(name):
            findings.append(f"blobs/{name} is not named by a digest")
        elif not file.regular:
            findings.append(f"blobs/{name} is not a regular file")
        elif entry is None:
            findings.append(f"blobs/{name} lies on disk, memory does not know it")
        elif file.size_bytes != entry.size_bytes:
            findings.append(f"blobs/{name} has {file.size_bytes} bytes, memory says {entry.size_bytes}")
        elif file.mode != BLOB_MODE:
            findings.append(f"blobs/{name} has mode {file.mode:04o}, should be {BLOB_MODE:04o}")
        else:
            sound.append(Digest(name))
    findings += [f"blobs/{digest} is in memory, not on disk" for digest in sorted(set(index.entries) - set(on_disk))]
    counted = sum(entry.size_bytes for entry in index.entries.values())
    if counted != index.total_bytes:
        findings.append(f"memory counts {index.total_bytes} bytes of blobs, its entries sum up to {counted}")
    return findings, sound
