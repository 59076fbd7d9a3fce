"""One job from its input to its output. Killed at any moment and begun again, it answers each row once: what a part's note says is done
is not done again, and nothing else counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import BinaryIO, TypeVar

from blake3 import blake3

from tessera import failpoint
from tessera.clock import Clock
from tessera.domain.errors import AlreadyExists, DataCorrupted, FailedPrecondition, Internal, NotFound, TesseraError
from tessera.domain.records import BatchRecord
from tessera.domain.signature import Signature
from tessera.profiler.batch.core import checkpoint
from tessera.profiler.batch.core.answers import Answers, size_bytes
from tessera.profiler.batch.core.checkpoint import Manifest, PartNote, part_range, part_rows_for
from tessera.profiler.batch.core.locations import Location, Output, location
from tessera.profiler.batch.core.rows import Chunk, Portion
from tessera.profiler.batch.loops.limits import BatchLimits
from tessera.profiler.batch.loops.sending import Sender, with_patience
from tessera.profiler.batch.loops.thread import WorkThread
from tessera.profiler.batch.ports import FileFormat, Source, Storage

T = TypeVar("T")

Tell = Callable[[BatchRecord, bool], Awaitable[None]]
"""The job with its new figures; True: a part is written, so the record must say so."""


def output_of(job: BatchRecord) -> Output:
    return Output(location("output_url", job.output_url), job.output_format)


def refuse_existing(storage: Storage, job: BatchRecord) -> None:
    """Raises: AlreadyExists: there is something at the output that the job may neither replace nor go on with."""
    if job.if_exists == "overwrite":
        return
    output = output_of(job)
    begun = storage.version(output.working_manifest) is not None or storage.version(output.final_manifest) is not None
    if begun and job.if_exists == "resume":
        return
    names = storage.names(output.folder)
    if begun or names or storage.version(output.place) is not None:
        what = "was not written by a batch job, so there is nothing to resume" if not begun else "say resume or overwrite"
        raise AlreadyExists(f"output_url {job.output_url!r}: exists already; {what}")


class Work:
    """
    Args:
        tell: is told whenever figures of the job have changed.
    """

    def __init__(
        self,
        job: BatchRecord,
        signature: Signature,
        *,
        clock: Clock,
        storage: Storage,
        input_format: FileFormat,
        output_format: FileFormat,
        sender: Sender,
        thread: WorkThread,
        limits: BatchLimits,
        tell: Tell,
    ) -> None:
        self._job = job
        self._signature = signature
        self._clock = clock
        self._storage = storage
        self._input_format = input_format
        self._output_format = output_format
        self._sender = sender
        self._thread = thread
        self._limits = limits
        self._tell = tell
        self._input = location("input_url", job.input_url)
        self._output = output_of(job)
        self._source: Source | None = None

    async def run(self) -> BatchRecord:
        """The job with its last figures, when everything is written; its reason says what could not be tidied away.

        Raises:
            TesseraError: it cannot be done; what is written stays.
        """
        rows = await self._blocking("opening the input", self._open_source)
        try:
            manifest = await self._begin(rows)
            await self._blocking("sweeping the output", self._sweep)
            if manifest.done:
                await self._blocking("looking at the output", partial(self._check_there, manifest))
                await self._figures(manifest.parts, written=True)
                await self._tidied()
                return self._job
            notes = await self._blocking("reading the checkpoint", partial(self._finished_parts, manifest))
            await self._figures(notes, written=True)
            while sum(note.rows for note in notes) < rows:
                manifest, note = await self._part(manifest, notes)
                notes = (*notes, note)
                await self._figures(notes, written=True)
        finally:
            await self._thread.run(self._close_source)
        await self._finish(manifest, notes)
        return self._job

    def _open_source(self) -> int:
        """How many rows it has."""
        self._source = self._input_format.open_source(lambda: self._storage.open(self._input), self._signature, True)
        return self._source.rows

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _read(self, first: int, most: int) -> Portion:
        """A read that failed leaves the source wherever it was, so that the next one opens it anew."""
        if self._source is None:
            self._open_source()
        assert self._source is not None
        try:
            return self._source.read(first, most)
        except BaseException:
            self._close_source()
            raise

    async def _begin(self, rows: int) -> Manifest:
        """The manifest to go on under: this job's own, a predecessor's that it resumes, or a new one."""
        job, output = self._job, self._output
        version = await self._blocking("looking at the input", partial(self._storage.version, self._input))
        if version is None:
            raise NotFound(f"input_url {job.input_url!r}: is not there any more")
        fresh = Manifest(
            job.job_id, job.asked, job.input_url, job.input_format, version, job.output_format, rows, objectives=job.objectives
        )
        self._job = replace(job, rows=rows)
        found = await self._blocking("reading the manifest", self._manifests)
        # A finished output is gone on with last: somebody may have begun to overwrite it.
        known = sorted(found.items(), key=lambda item: (not item[1].describes(job), item[1].done))
        for place, manifest in known:
            if manifest.why_not_continued(fresh):
                continue
            if not manifest.done and not manifest.describes(job):
                manifest = replace(manifest, job_id=job.job_id)
                await self._put(place, checkpoint.encode(manifest))
            return manifest
        if known:
            reason = known[0][1].why_not_continued(fresh)
            raise FailedPrecondition(f"what was written at {job.output_url!r} cannot be gone on with: {reason}")
        await self._blocking("looking at the output", partial(refuse_existing, self._storage, job))
        await self._blocking("clearing the output", self._clear)
        await self._put(output.working_manifest, checkpoint.encode(fresh))
        return fresh

    def _manifests(self) -> dict[Location, Manifest]:
        """Those that this job may go on under, by their place: its own, and any where it resumes.

        A working one beside the done one of the same job is what tidying has left, of parts that may be gone: it is passed over.
        """
        places = {self._output.final_manifest, self._output.working_manifest}
        there = [place for place in places if self._storage.version(place) is not None]
        found = {place: checkpoint.decode(Manifest, self._storage.read(place), str(place)) for place in there}
        finished = {each.job_id for each in found.values() if each.done}
        current = {place: each for place, each in found.items() if each.done or each.job_id not in finished}
        return {place: each for place, each in current.items() if each.describes(self._job) or self._job.if_exists == "resume"}

    def _clear(self) -> None:
        """Removes what an earlier job wrote, and nothing that no job names; the manifest last, so that a kill in between shows."""
        names = [name for name in self._storage.names(self._output.folder) if Output.is_own(name)]
        self._storage.remove(self._output.folder, sorted(names, key=lambda name: name.startswith("manifest")))

    def _sweep(self) -> None:
        """Removes what a killed profiler was writing of this output; others may write in the same folders."""
        output = self._output
        self._storage.sweep(output.working_manifest, Output.is_own)
        if output.single:
            self._storage.sweep(output.place, lambda name: name in (output.place.name, output.final_manifest.name))

    def _check_there(self, manifest: Manifest) -> None:
        """Raises: FailedPrecondition: what a done manifest names is gone, or is of another size."""
        output = self._output
        if output.single:
            version = self._storage.version(output.place)
            wanted, there = {output.place: manifest.size_bytes}, {output.place.name: version.size_bytes} if version else {}
        else:
            wanted, there = {output.part(note.part): note.size_bytes for note in manifest.parts}, self._storage.names(output.folder)
        for place, written in wanted.items():
            found = there.get(place.name)
            if found != written:
                now = "is gone" if found is None else f"has {found} bytes, {written} were written"
                raise FailedPrecondition(f"{place} {now}: overwrite begins anew")

    def _finished_parts(self, manifest: Manifest) -> tuple[PartNote, ...]:
        names = self._storage.names(self._output.folder)
        notes: dict[int, PartNote] = {}
        while manifest.part_rows:
            place = self._output.note(len(notes))
            if place.name not in names:
                break
            notes[len(notes)] = checkpoint.decode(PartNote, self._storage.read(place), str(place))
        sizes = {number: names.get(self._output.part(number).name, -1) for number in notes}
        return checkpoint.finished(notes, sizes, manifest.part_rows, manifest.rows)

    async def _part(self, manifest: Manifest, notes: tuple[PartNote, ...]) -> tuple[Manifest, PartNote]:
        """Answers and writes the next part. The first answers of a job say how many rows a part has."""
        number = len(notes)
        answers = Answers(sum(note.rows for note in notes), 0)
        if not manifest.part_rows:
            await self._answer(answers, min(self._job.batch_size, manifest.rows), notes)
            answer_bytes = sum(size_bytes(segment) for segment in answers.segments)
            part_rows = part_rows_for(answer_bytes, answers.answered, self._job.batch_size, self._limits.part_rows, self._limits.part_bytes)
            manifest = replace(manifest, part_rows=part_rows)
            await self._put(self._output.working_manifest, checkpoint.encode(manifest))
        first, rows = part_range(number, manifest.part_rows, manifest.rows)
        await self._answer(answers, rows - answers.rows, notes)
        answers.check_complete()
        data = await self._thread.run(self._output_format.encode, answers)
        await self._put(self._output.part(number), data)
        await failpoint.async_hit("profiler.batch.part")
        errors = tuple(sorted(answers.errors, key=lambda error: error.row))
        note = PartNote(number, first, rows, len(data), str(blake3(data).hexdigest()), errors)
        await self._put(self._output.note(number), checkpoint.encode(note))
        await failpoint.async_hit("profiler.batch.note")
        return manifest, note

    async def _answer(self, answers: Answers, rows: int, notes: tuple[PartNote, ...]) -> None:
        """Takes `rows` more into `answers`, a few requests at a time."""
        slots = asyncio.Semaphore(self._limits.in_flight)
        end = answers.first + answers.rows + rows
        failed_before = sum(len(note.errors) for note in notes)

        async def ask(chunk: Chunk) -> None:
            try:
                segments, errors = await self._sender.answer(self._job, self._signature.batched, chunk)
            finally:
                slots.release()
            answers.segments += segments
            answers.errors += errors
            self._check_errors(failed_before, answers)
            done = sum(note.rows for note in notes) + answers.answered + len(answers.errors)
            self._job = replace(self._job, rows_done=done, rows_failed=failed_before + len(answers.errors))
            await self._tell(self._job, False)

        try:
            async with asyncio.TaskGroup() as group:
                while answers.first + answers.rows < end:
                    at = answers.first + answers.rows
                    most = min(self._job.batch_size, end - at)
                    portion = await self._blocking("reading the input", partial(self._read, at, most))
                    if not portion.rows:
                        raise DataCorrupted(f"the input ends at row {at}, it had {self._job.rows}")
                    answers.rows += portion.rows
                    answers.errors += portion.errors
                    self._check_errors(failed_before, answers)
                    for chunk in portion.chunks:
                        await slots.acquire()
                        group.create_task(ask(chunk))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _check_errors(self, failed_before: int, answers: Answers) -> None:
        """Raises: FailedPrecondition: more rows have failed than may."""
        failed = failed_before + len(answers.errors)
        if failed > self._job.max_errors:
            first = min(answers.errors, key=lambda error: error.row)
            raise FailedPrecondition(
                f"{failed} rows failed, at most max_errors = {self._job.max_errors} may; row {first.row}: {first.kind}: {first.message}"
            )

    async def _finish(self, manifest: Manifest, notes: tuple[PartNote, ...]) -> None:
        """Joins the parts where the output is one file; then the manifest says that it is done, and what was only for the way goes."""
        output = self._output
        if await self._blocking("looking at the input", partial(self._storage.version, self._input)) != manifest.input:
            raise FailedPrecondition(f"input_url {self._job.input_url!r}: was changed while the job read it")
        done = replace(manifest, done=True, parts=notes, rows_failed=sum(len(note.errors) for note in notes))
        if output.single:
            joined = await self._patiently(f"writing {output.place}", partial(self._joined, notes))
            done = replace(done, size_bytes=joined[0], digest=joined[1])
            await failpoint.async_hit("profiler.batch.joined")
        await self._put(output.final_manifest, checkpoint.encode(done))
        await failpoint.async_hit("profiler.batch.finished")
        await self._tidied()

    async def _joined(self, notes: tuple[PartNote, ...]) -> tuple[int, str]:
        """Size and digest."""

        def pieces(target: BinaryIO) -> Iterator[None]:
            return self._output_format.join(target, notes, self._read_part)

        written = await self._thread.drain(self._storage.write(self._output.place, pieces))
        if written is None:
            raise Internal(f"nothing was written to {self._output.place}")
        return written

    def _read_part(self, note: PartNote) -> bytes:
        """Raises: DataCorrupted: somebody else wrote there."""
        data = self._storage.read(self._output.part(note.part))
        if blake3(data).hexdigest() != note.digest:
            raise DataCorrupted(f"{self._output.part(note.part)} is not what its note says: overwrite begins anew")
        return data

    async def _tidied(self) -> None:
        """The output is complete: that something is left beside it does not fail the job."""
        try:
            await self._blocking("removing parts and notes", self._tidy)
        except TesseraError as error:
            self._job = replace(self._job, reason=f"complete, but not tidied up: {error.message}")

    def _tidy(self) -> None:
        """A single file needs its parts no more; a folder keeps them, its notes are in the manifest."""
        if self._output.single:
            self._clear()
            return
        names = [name for name in self._storage.names(self._output.folder) if Output.is_own(name)]
        self._storage.remove(self._output.folder, [name for name in names if name.endswith(".json") and name.startswith("part-")])

    async def _figures(self, notes: tuple[PartNote, ...], *, written: bool) -> None:
        self._job = replace(
            self._job,
            rows_done=sum(note.rows for note in notes),
            rows_failed=sum(len(note.errors) for note in notes),
            parts=len(notes),
        )
        await self._tell(self._job, written)

    async def _put(self, place: Location, data: bytes) -> None:
        await self._blocking(f"writing {place}", partial(self._storage.put, place, data))

    async def _blocking(self, what: str, call: Callable[[], T]) -> T:
        return await self._patiently(what, partial(self._thread.run, call))

    async def _patiently(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        return await with_patience(self._clock, self._limits.patience_s, call, what, self._job.job_id)
