"""What the store has for a start, and how the rest comes: artifacts once read stay decoded, blobs are held for a start until its
runtime holds them."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import TypeVar

from tessera.domain.artifact import Blob
from tessera.domain.errors import InvalidInput, NotFound
from tessera.domain.ids import BuildClass, Digest, InstanceId, VariantKey
from tessera.domain.source import Source
from tessera.node_agent.core.artifacts import FLAVOURS, IDENTITY_MODEL, Load, identity_artifact, load_of
from tessera.node_agent.ports import Blobs
from tessera.repository.fetch import Fetched, Progress
from tessera.tensorstore.artifact import decode, digest_of, encode
from tessera.tensorstore.interface import TensorStore

KEPT_LOADS = 4096
UNREAD_ARTIFACT_BYTES = 1 << 20
"""Taken for the size of an artifact that did not fit itself: they are tens of KiB."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Lacking:
    """What a start needs that is not in the store, in bytes, and what is: `present_bytes` of it nobody holds yet."""

    missing_bytes: int
    present_bytes: int
    needs: frozenset[Digest]


def holder_of(instance_id: InstanceId) -> str:
    """Who holds the blobs of a start that has no runtime yet."""
    return f"start-{instance_id}"


class Larder:
    """The store as starts need it. No thread that holds blobs for somebody outlives the call that began it, however that ends: what is
    released afterwards stays so."""

    def __init__(
        self,
        store: TensorStore,
        blobs: Blobs,
        build_class: BuildClass,
        flavours: Mapping[str, str] = FLAVOURS,
        neighbours: Callable[[], Iterable[Source]] = tuple,
    ) -> None:
        """`flavours`: backend -> flavour of the runtime that serves it. `neighbours`: the trust domain's other nodes as they are known now,
        for fetches of which nobody said who has the bytes."""
        self._store = store
        self._blobs = blobs
        self._build_class = build_class
        self._flavours = flavours
        self._neighbours = neighbours
        self._loads: OrderedDict[Digest, Load] = OrderedDict()
        self._built_in: dict[Digest, bytes] = {}

    def artifact_of(self, variant: VariantKey, artifact: Digest | None) -> Digest:
        """The artifact to load. The built-in model needs none: its own is put into the store.

        Raises:
            InvalidInput: there is none, and the model is not built in.
        """
        if artifact is not None:
            return artifact
        if variant.model != IDENTITY_MODEL:
            raise InvalidInput("artifact_digest", "", f"variant {variant} needs one")
        data = encode(identity_artifact())
        digest = digest_of(data)
        self._built_in[digest] = data
        if not self._store.has(digest):
            self._put(digest, data)
        return digest

    async def put(self, blobs: Mapping[Digest, bytes], instance_id: InstanceId) -> None:
        """Holds what was made here, written where it is not there. Raises: ResourceExhausted: there is no room."""
        holder, cancel = holder_of(instance_id), threading.Event()

        def put_all() -> None:
            for digest, data in blobs.items():
                if cancel.is_set():
                    return
                try:
                    self._store.pin(holder, [digest])
                except NotFound:
                    self._put(digest, data, holder)

        await _in_thread(put_all, cancel)

    def _put(self, digest: Digest, data: bytes, holder: str | None = None) -> None:
        with self._store.ingest(digest, len(data), holder) as writer:
            writer.write(data)
            writer.commit()

    def take(self, artifact: Digest, instance_id: InstanceId) -> Load | None:
        """Holds everything for the start and returns it, or returns None when something has to be fetched. Reads tmpfs at most.

        Raises:
            DataCorrupted, Unsupported, FailedPrecondition: the artifact cannot be loaded here.
        """
        try:
            load = self.load(artifact)
            self._store.pin(holder_of(instance_id), load.blobs)
        except NotFound:
            return None
        return load

    def load(self, artifact: Digest) -> Load:
        """What an artifact in the store takes.

        Raises:
            NotFound: it is not in the store.
            DataCorrupted, Unsupported, FailedPrecondition: it cannot be loaded here.
        """
        known = self._loads.get(artifact)
        if known is not None:
            self._loads.move_to_end(artifact)
            return known
        data = self._store.path(artifact).read_bytes()
        load = self._loads[artifact] = load_of(artifact, len(data), decode(data), self._build_class, self._flavours)
        if len(self._loads) > KEPT_LOADS:
            self._loads.popitem(last=False)
        return load

    async def fetch(
        self,
        artifact: Digest,
        instance_id: InstanceId,
        cancel: threading.Event | None = None,
        sources: tuple[Source, ...] | None = None,
        progress: Progress | None = None,
    ) -> tuple[Load, Fetched]:
        """Brings in what is missing, held for the start; returns what to load and what came. `sources` None: nobody said who has it, so
        the neighbours are asked. `progress` is called in other threads.

        Raises:
            Cancelled: `cancel` was set.
            NotFound, DataCorrupted, ResourceExhausted, Unavailable: from repository and store.
        """
        if artifact in self._built_in:  # reclaimed since it was made; no repository has it
            self._put(artifact, self._built_in[artifact], holder_of(instance_id))
            return self.load(artifact), Fetched(0, ())
        holder, ended = holder_of(instance_id), cancel or threading.Event()
        named, neighbours = (sources, ()) if sources is not None else ((), tuple(self._neighbours()))
        _, fetched = await _in_thread(lambda: self._blobs.fetch_artifact(artifact, holder, progress, ended, named, neighbours), ended)
        return self.load(artifact), fetched

    async def bring(self, artifact: Digest, holder: InstanceId, beside: Sequence[Blob] = ()) -> None:
        """As `fetch`, for an artifact that is not to be loaded (an export), and for blobs that no artifact names."""
        name, cancel, neighbours = holder_of(holder), threading.Event(), tuple(self._neighbours())
        await _in_thread(lambda: self._blobs.fetch_artifact(artifact, name, None, cancel, neighbours=neighbours), cancel)
        if beside:
            await _in_thread(lambda: self._blobs.fetch(beside, name, None, cancel, neighbours=neighbours), cancel)

    def lacking(self, artifact: Digest) -> Lacking:
        """What is missing for an artifact now."""
        try:
            blobs = self.load(artifact).blobs
        except NotFound:
            return Lacking(UNREAD_ARTIFACT_BYTES, 0, frozenset())
        there, held = self._store.digests(), frozenset[Digest]().union(*self._store.holders().values())
        missing = sum(size for digest, size in blobs.items() if digest not in there)
        return Lacking(missing, sum(size for digest, size in blobs.items() if digest in there and digest not in held), frozenset(blobs))

    def sizes(self) -> Mapping[Digest, int]:
        """What the store has, in bytes."""
        return self._store.digests()

    def release(self, instance_id: InstanceId) -> None:
        """The start is over, one way or the other."""
        self._store.unpin(holder_of(instance_id), None)

    async def corrupted(self, load: Load) -> frozenset[Digest]:
        """Those of its blobs that are there and do not have their digest any more (reads them all, in a thread)."""
        return frozenset(await asyncio.to_thread(lambda: [digest for digest in load.blobs if self._corrupted(digest)]))

    def quarantine(self, bad: frozenset[Digest]) -> None:
        """Nobody holds these any more; `fetch` brings them anew."""
        for digest in bad:
            with suppress(NotFound):
                self._store.quarantine(digest)
            self._loads.pop(digest, None)

    def _corrupted(self, digest: Digest) -> bool:
        try:
            return not self._store.verify(digest)
        except NotFound:
            return False


async def _in_thread(call: Callable[[], _Result], cancel: threading.Event) -> _Result:
    """As `asyncio.to_thread`, but who is cancelled meanwhile sets `cancel`, which ends `call` soon, and waits until it has ended."""
    running = asyncio.get_running_loop().run_in_executor(None, copy_context().run, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancel.set()
        while not running.done():
            with suppress(asyncio.CancelledError, Exception):  # what comes of it nobody wants to know any more
                await asyncio.shield(running)
        raise
