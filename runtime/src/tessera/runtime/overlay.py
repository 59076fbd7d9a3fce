"""Replace on what reads its weights where they lie: the target's blobs are mapped over those of a live donor (docs/adr/0013).

Whoever points into a mapping reads the other file from then on, at the same address. Everything is checked before anything is changed; a
blob that has been mapped over belongs to whoever points into it, and is no longer found as what it was.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from typing import NamedTuple

import numpy as np

from tessera import failpoint
from tessera.domain.artifact import Artifact, Blob
from tessera.domain.errors import FailedPrecondition, Internal
from tessera.domain.ids import Digest
from tessera.runtime.backends.interface import MappedBlobs

_LINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) r--s ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+) ", re.MULTILINE)
_MAYMOVE, _FIXED = 1, 2
_FIXED_NOREPLACE = 0x100000
_ADDRESS, _SIZE = ctypes.c_void_p, ctypes.c_size_t

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.argtypes = (_ADDRESS, _SIZE, _SIZE, ctypes.c_int, _ADDRESS)
_libc.mremap.restype = _ADDRESS
_libc.mmap.argtypes = (_ADDRESS, _SIZE, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mmap.restype = _ADDRESS

_abandoned: list[memoryview] = []
"""Views of addresses that may be somebody else's by now: never unmapped."""

Seats = dict[Digest, memoryview]
"""Of a live instance: where its blobs lie that were mapped over others, by digest."""


class Overlay(NamedTuple):
    """What is to be mapped over what, (seat, blob) each, and the seats after it. `changed`: slots whose bytes are others."""

    pairs: list[tuple[memoryview, memoryview]]
    seats: Seats
    changed: frozenset[str]


def checked(source: Artifact, there: MappedBlobs, seats: Seats, target: Artifact, blobs: MappedBlobs) -> Overlay:
    """How what is open of the source, with some of its blobs in `seats`, gets the bytes of the target, whose graph it has.

    Raises:
        FailedPrecondition: its tensors do not lie as the artifact's do, somebody else reads what would be mapped over, or the target has
            another mapping of what stays; names the first.
    """
    pairs: list[tuple[memoryview, memoryview]] = []
    after: Seats = {}
    regions = _file_mappings()
    for digest, other in counterparts(source, target).items():
        here = there.mapped(digest)
        seat = seats.get(digest)
        if digest != other.digest:
            if seat is None and not here.alone:
                raise FailedPrecondition(f"blob {digest} is mapped for others too")
            new = blobs.mapped(other.digest)
            seat = here.view if seat is None else seat
            length = -(-len(seat) // mmap.PAGESIZE) * mmap.PAGESIZE
            for view, file in ((seat, here), (new.view, new)):
                if regions.get(address_of(view)) != (length, 0, file.device, file.inode):
                    raise FailedPrecondition(f"blob {digest}: {len(view)} bytes at {address_of(view):#x} are no mapping of its file")
            pairs.append((seat, new.view))
        elif seat is None and blobs.mapped(digest).view is not here.view:
            # What is open reads the mapping before; nothing would know later on where it reads.
            raise FailedPrecondition(f"blob {digest} was mapped anew")
        if seat is not None:
            after[other.digest] = seat
    before = {ref.slot: ref.digest for ref in source.tensors}
    return Overlay(pairs, after, frozenset(ref.slot for ref in target.tensors if ref.digest != before[ref.slot]))


def counterparts(source: Artifact, target: Artifact) -> dict[Digest, Blob]:
    """Blob of the source -> blob of the target that takes its place, for two artifacts of one graph.

    Raises:
        FailedPrecondition: a tensor lies elsewhere or is of another length, or two share their bytes in one artifact alone.
    """
    refs = {ref.slot: ref for ref in target.tensors}
    found: dict[Digest, Blob] = {}
    for ref in source.tensors:
        other = refs.get(ref.slot)
        if other is None or (other.pack_offset, other.size_bytes) != (ref.pack_offset, ref.size_bytes):
            raise FailedPrecondition(f"tensor {ref.slot} lies elsewhere in the other artifact, or is of another length")
        blob = Blob(other.digest, other.size_bytes)
        if ref.pack_offset is None and ref.size_bytes and found.setdefault(ref.digest, blob) != blob:
            raise FailedPrecondition(f"tensor {ref.slot} shares its bytes with another one, which it does not in the other artifact")
    if source.pack is not None and target.pack is not None:
        if source.pack.size_bytes != target.pack.size_bytes:
            raise FailedPrecondition(f"the packs are {source.pack.size_bytes} and {target.pack.size_bytes} bytes long")
        found[source.pack.digest] = target.pack
    if len(set(found.values())) < len(found):
        raise FailedPrecondition("tensors share their bytes in the other artifact that do not share them here")
    return found


def map_over(overlay: Overlay) -> None:
    """Carries it out; nobody reads meanwhile. A failure leaves some seats with other bytes, and perhaps one with none at all.

    Raises:
        Internal: the kernel refused.
    """
    for seat, blob in overlay.pairs:
        failpoint.hit("runtime.replace")
        at, length = address_of(seat), len(seat)
        if _libc.mremap(address_of(blob), 0, length, _MAYMOVE | _FIXED, at) != at:  # a length of 0: a second mapping of the same pages
            error = os.strerror(ctypes.get_errno())
            _plug(seat)
            raise Internal(f"{length} bytes cannot be mapped at {at:#x}: {error}")


def _plug(seat: memoryview) -> None:
    """The kernel may have left a hole, and its owner will unmap whatever is there."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED_NOREPLACE
    if _libc.mmap(address_of(seat), len(seat), 0, flags, -1, 0) != address_of(seat):
        _abandoned.append(seat)


def address_of(view: memoryview) -> int:
    address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return address


def _file_mappings() -> dict[int, tuple[int, int, int, int]]:
    """This process's shared, read-only mappings of files: address -> (length, offset, device, inode)."""
    with open("/proc/self/maps", "rb") as file:
        lines = _LINE.findall(file.read())
    found = {}
    for start, end, offset, major, minor, inode in lines:
        device = os.makedev(int(major, 16), int(minor, 16))
        found[int(start, 16)] = (int(end, 16) - int(start, 16), int(offset, 16), device, int(inode))
    return found
