"""The bytes of one artifact, from the store: mapped, or copied where sharing is off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tessera.domain.artifact import Artifact
from tessera.domain.errors import DataCorrupted, FailedPrecondition, NotFound
from tessera.domain.ids import Digest
from tessera.tensorstore import artifact as artifacts
from tessera.tensorstore.mapping import BlobMap, Mapped, tensor_view

T = TypeVar("T")


def read_blob(store: Path, digest: Digest) -> bytes:
    """A small blob (artifact, graph), verified.

    Raises:
        NotFound: the store does not have it.
        DataCorrupted: its bytes have another digest; names it.
    """
    try:
        data = blob_path(store, digest).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"blob {digest} is not in the store") from None
    _check(data, digest)
    return data


def blob_path(store: Path, digest: Digest) -> Path:
    return store / "blobs" / digest


def _check(data: bytes | memoryview, digest: Digest) -> None:
    found = artifacts.digest_of(data)
    if found != digest:
        raise DataCorrupted(f"blob {digest} has the bytes of {found}")


class ArtifactBlobs:
    """A `BlobSource` (see `backends.interface`). `close` ends the mappings; only after nothing points into them any more."""

    def __init__(
        self,
        store: Path,
        artifact: Artifact,
        mapped: BlobMap,
        private: bool,
        verify: bool,
        read: Callable[[Path, Digest], bytes] = read_blob,
    ) -> None:
        """Maps every blob of the artifact but the graph, which is read by `read`: siblings have one graph, and may share its bytes.

        Raises:
            NotFound: a blob is not in the store.
            DataCorrupted: a blob has another length than the artifact says, was written to after it was stored, or (with `verify`) has
                other bytes; names the digest.
        """
        self._artifact = artifact
        self._folder = f"{store}/blobs/"
        self._mapped = mapped
        self._open: dict[Digest, memoryview] = {}
        self._derived: Any = None
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self.mapped_bytes = 0
        self._graph = read(store, artifact.graph.digest) if artifact.graph else b""
        try:
            self._map(private, verify)
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> int:
        """How many files it keeps mapped."""
        return len(self._open)

    @property
    def digests(self) -> frozenset[Digest]:
        """What it keeps mapped."""
        return frozenset(self._open)

    def is_current(self) -> bool:
        """Whether every mapped blob is the store's file still, unchanged."""
        return all(self._mapped.is_current(self._folder + digest) for digest in self._open)

    def _map(self, private: bool, verify: bool) -> None:
        graph = self._artifact.graph.digest if self._artifact.graph else None
        for blob in self._artifact.blobs():
            if blob.digest == graph:
                continue
            try:
                view = self._mapped.open(self._folder + blob.digest)
            except NotFound:
                raise NotFound(f"blob {blob.digest} is not in the store") from None
            self._open[blob.digest] = view
            if len(view) != blob.size_bytes:
                raise DataCorrupted(f"blob {blob.digest} is {len(view)} bytes long: the artifact says {blob.size_bytes}")
            if verify:
                _check(view, blob.digest)
            elif not self._mapped.is_sealed(blob.digest):
                raise DataCorrupted(f"blob {blob.digest} was written to after it was stored")
            self.mapped_bytes += blob.size_bytes
        pack = self._artifact.pack.digest if self._artifact.pack else None
        for ref in self._artifact.tensors:
            view = self._open[pack if ref.pack_offset is not None and pack is not None else ref.digest]
            array = tensor_view(view, ref)
            self._arrays[ref.slot] = np.array(array) if private else array
        if private:
            self._end_mappings()
            self.mapped_bytes = 0

    def graph(self) -> bytes:
        return self._graph

    def tensors(self) -> Mapping[str, npt.NDArray[Any]]:
        return self._arrays

    def derived(self, make: Callable[[], T]) -> T:
        if self._derived is None:
            self._derived = make()
        found: T = self._derived
        return found

    def mapped(self, digest: Digest) -> Mapped:
        view = self._open.get(digest)
        if view is None:
            raise FailedPrecondition(f"blob {digest} is not mapped: sharing is off")
        found = self._mapped.mapped(digest)
        # a file that came in its place since is another mapping, and somebody may have this one still
        return found if found.view is view else found._replace(view=view, alone=False)

    def forget_derived(self) -> None:
        """Lets go of what was derived; the bytes stay mapped. Nothing may use it any more."""
        self._derived = None

    def close(self) -> None:
        self._derived = None
        self._arrays.clear()
        self._end_mappings()

    def _end_mappings(self) -> None:
        while self._open:
            self._mapped.close(self._open.popitem()[0])
