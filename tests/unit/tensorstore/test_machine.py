"""Any sequence of calls leaves the store sound: memory equals disk, held blobs stay, the budget holds, bytes are right."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tessera.domain.errors import DataCorrupted, NotFound, ResourceExhausted
from tessera.domain.ids import Digest
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.interface import Writer
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import BUDGET, StepClock, blob_of

SIZES = (0, 1, 90, 250, 400, 990)
BLOBS = [blob_of(seed, size) for seed, size in enumerate(SIZES * 2)]
DIGESTS = [digest_of(data) for data in BLOBS]
HOLDERS = ("runtime-a", "runtime-b", "runtime-c")

blobs = st.integers(0, len(BLOBS) - 1)
holders = st.sampled_from(HOLDERS)


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = StepClock()
        self.store = LocalTensorStore(self.folder / "store", BUDGET, self.clock)
        self.held: dict[str, set[Digest]] = {}
        self.writers: list[tuple[int, Writer]] = []

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def held_by_anyone(self) -> set[Digest]:
        return set().union(*self.held.values())

    @rule(blob=blobs, holder=st.none() | holders)
    def bring_in(self, blob: int, holder: str | None) -> None:
        try:
            with self.store.ingest(DIGESTS[blob], len(BLOBS[blob]), holder) as writer:
                writer.write(BLOBS[blob])
                had = self.store.has(DIGESTS[blob])
                assert writer.commit() is not had
        except ResourceExhausted:
            fixed = self.store.status().incoming_bytes + sum(len(BLOBS[DIGESTS.index(digest)]) for digest in self.held_by_anyone())
            assert fixed + len(BLOBS[blob]) > BUDGET  # refused only when what may not go leaves too little
            return
        assert self.store.has(DIGESTS[blob])
        if holder is not None:
            self.held.setdefault(holder, set()).add(DIGESTS[blob])

    @rule(blob=blobs)
    def begin(self, blob: int) -> None:
        try:
            writer = self.store.ingest(DIGESTS[blob], len(BLOBS[blob]))
        except ResourceExhausted:
            return
        writer.write(BLOBS[blob][: len(BLOBS[blob]) // 2])
        self.writers.append((blob, writer))

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), how=st.sampled_from(["finish", "early", "wrong", "abort", "drop"]))
    def end(self, data: st.DataObject, how: str) -> None:
        blob, writer = self.writers.pop(data.draw(st.integers(0, len(self.writers) - 1)))
        rest = BLOBS[blob][len(BLOBS[blob]) // 2 :]
        if how == "finish":
            writer.write(rest)
            writer.commit()
            assert self.store.has(DIGESTS[blob])
        elif how == "abort":
            writer.abort()
        elif rest and how in ("early", "wrong"):
            if how == "wrong":
                writer.write(bytes(255 - byte for byte in rest))
            with pytest.raises(DataCorrupted):
                writer.commit()
        del writer

    @rule(holder=holders, wanted=st.lists(blobs, max_size=4))
    def pin(self, holder: str, wanted: list[int]) -> None:
        digests = [DIGESTS[blob] for blob in wanted]
        if all(self.store.has(digest) for digest in digests):
            self.store.pin(holder, digests)
            if digests:
                self.held.setdefault(holder, set()).update(digests)
        else:
            with pytest.raises(NotFound):
                self.store.pin(holder, digests)

    @rule(holder=holders, wanted=st.none() | st.lists(blobs, max_size=4))
    def unpin(self, holder: str, wanted: list[int] | None) -> None:
        self.store.unpin(holder, None if wanted is None else [DIGESTS[blob] for blob in wanted])
        left = set() if wanted is None else self.held.get(holder, set()) - {DIGESTS[blob] for blob in wanted}
        self.held.pop(holder, None)
        if left:
            self.held[holder] = left

    @rule(size_bytes=st.integers(0, BUDGET + 1))
    def make_room(self, size_bytes: int) -> None:
        before = self.store.digests()
        try:
            gone = self.store.make_room(size_bytes)
        except ResourceExhausted:
            assert self.store.digests() == before
            return
        assert set(before) - set(self.store.digests()) == set(gone)
        assert self.store.status().used_bytes + size_bytes <= BUDGET

    @rule(used_bytes=st.integers(0, BUDGET))
    def shrink(self, used_bytes: int) -> None:
        before = self.store.digests()
        gone = self.store.shrink(used_bytes)
        assert set(before) - set(self.store.digests()) == set(gone)
        assert self.store.status().used_bytes <= used_bytes or set(self.store.digests()) <= self.held_by_anyone()

    @rule(blob=blobs)
    def quarantine(self, blob: int) -> None:
        if not self.store.has(DIGESTS[blob]):
            with pytest.raises(NotFound):
                self.store.quarantine(DIGESTS[blob])
            return
        self.store.quarantine(DIGESTS[blob])
        assert not self.store.has(DIGESTS[blob])
        for holder in list(self.held):
            self.held[holder].discard(DIGESTS[blob])
            if not self.held[holder]:
                del self.held[holder]

    @rule()
    def open_again(self) -> None:
        before = self.store.digests()
        self.store.close()
        self.writers.clear()
        self.held.clear()
        self.store = LocalTensorStore(self.folder / "store", BUDGET, self.clock)
        assert self.store.digests() == before

    @invariant()
    def is_sound(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.check(deep=True) == []
        assert self.store.holders() == {holder: frozenset(held) for holder, held in self.held.items()}
        status = self.store.status()
        assert status.used_bytes <= BUDGET
        assert status.incoming_bytes == sum(len(BLOBS[blob]) for blob, _ in self.writers)
        for digest in self.held_by_anyone():
            assert self.store.path(digest).read_bytes() == BLOBS[DIGESTS.index(digest)]


StoreMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestStoreMachine = StoreMachine.TestCase
