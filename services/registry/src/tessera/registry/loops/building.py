"""One variant on one node: baked there, stored, recorded. A baked variant is stored before its record says ready."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

from tessera import failpoint, telemetry
from tessera.clock import Clock
from tessera.domain.artifact import Blob
from tessera.domain.errors import (
    Conflict,
    DataCorrupted,
    DeadlineExceeded,
    Internal,
    NotFound,
    ResourceExhausted,
    TesseraError,
    Unavailable,
)
from tessera.domain.ids import VariantKey
from tessera.domain.records import VariantState
from tessera.registry.core.recipes import check_exact, withheld
from tessera.registry.core.variants import OPEN, Bake, step
from tessera.registry.loops.accounting import ready
from tessera.registry.loops.catalogue import Catalogue
from tessera.registry.loops.receiving import BlobReceiver
from tessera.registry.loops.shelf import Shelf
from tessera.registry.ports import BakeBlob, BakeDone, BakeOrder, BakeProgress, Baker, Blobs
from tessera.tensorstore.artifact import digest_of

_BACK_OFF_S = (1.0, 2.0, 5.0, 15.0, 60.0)
_log = telemetry.get_logger("tessera.registry.building")

Say = Callable[[Bake, str, str, float], None]
"""(what, word, message, fraction of the whole job)."""


class Builder:
    """Builds what a plan says. A node that is lost, or no room, costs another try, with back-off; a build that fails is recorded with its
    reason."""

    def __init__(
        self,
        *,
        clock: Clock,
        catalogue: Catalogue,
        baker: Baker,
        blobs: Blobs,
        shelf: Shelf,
        work: Path,
        timeout_s: float,
        attempts: int,
        say: Say,
    ) -> None:
        self._clock = clock
        self._catalogue = catalogue
        self._baker = baker
        self._blobs = blobs
        self._shelf = shelf
        self._work = work
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._say = say
        self._tries: dict[VariantKey, int] = {}
        self._not_before_s: dict[VariantKey, float] = {}

    def due(self, key: VariantKey) -> bool:
        """Whether its back-off is over."""
        return self._not_before_s.get(key, 0.0) <= self._clock.monotonic_s()

    def pause_s(self) -> float:
        """Until the next back-off is over; inf: none is under way."""
        now_s = self._clock.monotonic_s()
        return min((at_s - now_s for at_s in self._not_before_s.values() if at_s > now_s), default=inf)

    def forget(self, key: VariantKey) -> None:
        """It is tried as if for the first time."""
        self._tries.pop(key, None)
        self._not_before_s.pop(key, None)

    async def build(self, bake: Bake) -> None:
        """Ends with the variant ready, failed, or to be tried again. Cancelled, it leaves the record as it is: another look begins anew."""
        key = bake.variant.key
        try:
            current, revision = await self._catalogue.variant(key)
            if current is None or current.state not in OPEN:
                return
            building = replace(step(current, VariantState.BUILDING), build_class=bake.node.build_class)
            await self._catalogue.write_variant(building, revision)
            with telemetry.span("tessera.registry.bake", variant=str(key), node=bake.node.node_id, recipe=bake.recipe):
                await self._build(bake)
        except (Conflict, NotFound) as error:
            _log.info("variant changed while it was baked", variant=str(key), reason=str(error))
        except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:
            await self._lost(bake, error)
        except OSError as error:
            await self._lost(bake, Internal(f"what the node made cannot be written: {error.strerror or error}"))
        except TesseraError as error:
            await self._failed(bake, str(error))

    async def _build(self, bake: Bake) -> None:
        key = bake.variant.key
        begun_s = self._clock.monotonic_s()
        self._say(bake, "baking", f"{key.variant} on {bake.node.node_id} ({bake.node.build_class})", 0.9)
        await failpoint.async_hit("registry.before_bake")
        folder = self._work / f"bake-{digest_of(str(key).encode())[:16]}"
        shutil.rmtree(folder, ignore_errors=True)
        receiver = BlobReceiver(folder)
        try:
            done = await self._bake(bake, receiver)
            await self._store(bake, done, receiver.finish(), folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
        self.forget(key)
        _log.info("variant ready", variant=str(key), node=bake.node.node_id, seconds=round(self._clock.monotonic_s() - begun_s, 3))
        self._say(bake, "variant ready", str(key.variant), 0.97)

    async def _bake(self, bake: Bake, receiver: BlobReceiver) -> BakeDone:
        node, variant, version = bake.node, bake.variant, bake.version
        name = variant.key.variant
        order = BakeOrder(f"bake-{name}", bake.source, variant.max_batch, bake.recipe, version.evaluation, version.calibration)
        done: BakeDone | None = None
        try:
            async for event in self._baker.bake(node, order, self._timeout_s):
                if isinstance(event, BakeProgress):
                    self._say(bake, "baking", f"{name}: {event.message}", 0.92)
                elif isinstance(event, BakeBlob):
                    await receiver.take(event)
                else:
                    done = event
        except (Conflict, NotFound) as error:
            # the node's words about its own world (a repository without the export, for one): no record has changed here
            raise Unavailable(f"node {node.node_id}: {error}") from error
        if done is None:
            raise Unavailable(f"node {node.node_id} stopped baking without an answer")
        if done.build_class != node.build_class:
            raise Unavailable(f"node {node.node_id} is of build class {done.build_class} now, not {node.build_class}")
        return done

    async def _store(self, bake: Bake, done: BakeDone, blobs: tuple[Blob, ...], folder: Path) -> None:
        key = bake.variant.key
        inexact = check_exact(bake.recipe, done.agreement)
        if inexact:
            raise Internal(inexact)
        async with self._shelf.exclusive:
            await self._blobs.store(blobs, folder)
            if not await self._blobs.has(done.artifact):
                raise DataCorrupted(f"the node did not send artifact {done.artifact}")
            artifact = await self._blobs.artifact(done.artifact)
            wanted = bake.variant.backend
            if artifact.backend != wanted or artifact.build_class != done.build_class or artifact.precision != bake.variant.precision:
                made = f"{artifact.precision} for backend {artifact.backend!r} and build class {artifact.build_class!r}"
                raise DataCorrupted(f"the node baked {made}, not {bake.variant.precision} for {wanted} and {done.build_class!r}")
            for blob in artifact.blobs():
                if not await self._blobs.has(blob.digest):
                    raise DataCorrupted(f"the node did not send blob {blob.digest} of artifact {done.artifact}")
            others = await self._shelf.large_tensors_of_others(key.trust_domain, key.version_key)
            current, revision = await self._catalogue.variant(key)
            if current is None:
                raise NotFound(f"{key} was deleted")
            if current.state is not VariantState.BUILDING:
                raise Conflict(f"{key} is {current.state.value} by now")
            record = replace(
                ready(step(current, VariantState.READY), done.artifact, artifact, others),
                agreement=done.agreement,
                withheld=withheld(done.agreement, bake.version.allowance),
                notes=done.notes,
            )
            await self._catalogue.write_variant(record, revision)

    async def _lost(self, bake: Bake, error: TesseraError) -> None:
        key = bake.variant.key
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        if tries >= self._attempts:
            await self._failed(bake, f"tried {tries} times, at last on {bake.node.node_id}: {error}")
            return
        pause_s = _BACK_OFF_S[min(tries - 1, len(_BACK_OFF_S) - 1)]
        self._not_before_s[key] = self._clock.monotonic_s() + pause_s
        _log.warning("baking interrupted", variant=str(key), node=bake.node.node_id, reason=str(error), again_in_s=pause_s)
        self._say(bake, "baking", f"{key.variant}: {error}; again in {pause_s:g} s", 0.9)

    async def _failed(self, bake: Bake, reason: str) -> None:
        key = bake.variant.key
        _log.warning("variant failed", variant=str(key), reason=reason)
        self.forget(key)
        current, revision = await self._catalogue.variant(key)
        if current is None or current.state is not VariantState.BUILDING:
            return
        try:
            await self._catalogue.write_variant(step(current, VariantState.FAILED, reason), revision)
        except (Conflict, NotFound):
            return
        self._say(bake, "baking", f"{key.variant} failed: {reason}", 0.97)
