"""What every repository does. A test class per implementation derives from `RepositoryConformance` and says how one is opened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tessera.domain.errors import DataCorrupted, InvalidInput, NotFound
from tessera.domain.ids import Digest
from tessera.repository.interface import BlobRepository
from tessera.tensorstore.artifact import digest_of

ABSENT = Digest("0" * 64)
MIB = 1 << 20


class RepositoryConformance:
    def open_repository(self, folder: Path) -> BlobRepository:
        raise AssertionError("a conformance class says how its repository is opened")

    def corrupt(self, repository: BlobRepository, digest: Digest, data: bytes) -> None:
        raise AssertionError("a conformance class says how bytes are changed behind the repository's back")

    @pytest.fixture
    def repository(self, tmp_path: Path) -> BlobRepository:
        return self.open_repository(tmp_path / "repository")

    @pytest.mark.parametrize("size_bytes", [0, 1, MIB - 1, MIB, 2 * MIB + 7])
    def test_what_is_put_is_read_back_in_bounded_chunks(self, repository: BlobRepository, size_bytes: int) -> None:
        data = bytes(range(251)) * (size_bytes // 251 + 1)
        data = data[:size_bytes]
        digest = digest_of(data)
        assert repository.put(digest, [data[:10], b"", memoryview(data)[10:]])
        chunks = list(repository.open_reader(digest))
        assert b"".join(chunks) == data
        assert all(0 < len(chunk) <= MIB for chunk in chunks)
        assert repository.read(digest) == data
        assert repository.has(digest)
        assert sum(piece.length for piece in repository.locate(digest)) == size_bytes
        assert dict(repository.digests()) == {digest: size_bytes}

    def test_putting_again_says_that_it_was_there(self, repository: BlobRepository) -> None:
        digest = digest_of(b"data")
        assert repository.put(digest, [b"data"])
        assert not repository.put(digest, [b"data"])
        assert repository.put_bytes(b"data") == digest
        assert repository.put_bytes(bytearray()) == digest_of(b"")
        assert dict(repository.digests()) == {digest: 4, digest_of(b""): 0}

    def test_wrong_bytes_are_refused_and_leave_nothing(self, repository: BlobRepository) -> None:
        digest = digest_of(b"right")
        with pytest.raises(DataCorrupted, match=digest):
            repository.put(digest, [b"wr", b"ong"])
        assert not repository.has(digest)
        assert dict(repository.digests()) == {}
        assert repository.sweep() == 0
        assert repository.put(digest, [b"right"])

    def test_a_source_that_fails_leaves_nothing(self, repository: BlobRepository) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"half"
            raise RuntimeError("source")

        with pytest.raises(RuntimeError, match="source"):
            repository.put(digest_of(b"half and half"), chunks())
        assert dict(repository.digests()) == {}
        assert repository.sweep() == 0

    def test_a_blob_is_invisible_while_it_is_written(self, repository: BlobRepository) -> None:
        digest = digest_of(b"firstsecond")
        seen = []

        def chunks() -> Iterator[bytes]:
            yield b"first"
            seen.append((repository.has(digest), dict(repository.digests())))
            yield b"second"

        assert repository.put(digest, chunks())
        assert seen == [(False, {})]

    def test_of_many_writers_one_hears_that_it_was_new(self, repository: BlobRepository) -> None:
        barrier = threading.Barrier(6)

        def put(seed: int) -> bool:
            barrier.wait(10)
            return repository.put(digest_of(b"same" * 1000), [b"same" * 1000])

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(put, range(6))) == 1
        assert dict(repository.digests()) == {digest_of(b"same" * 1000): 4000}
        assert repository.verify(digest_of(b"same" * 1000))
        assert repository.sweep() == 0

    @pytest.mark.parametrize("stored", [b"datA", b"dat", b"data and more", b""])
    def test_a_corrupted_object_is_named_by_whoever_reads_it(self, repository: BlobRepository, stored: bytes) -> None:
        digest = repository.put_bytes(b"data")
        assert repository.verify(digest)
        self.corrupt(repository, digest, stored)
        assert not repository.verify(digest)
        with pytest.raises(DataCorrupted, match=digest):
            repository.read(digest)
        with pytest.raises(DataCorrupted, match=digest):
            list(repository.open_reader(digest))
        assert b"".join(repository.open_reader(digest, verify=False)) == stored

    def test_what_is_deleted_is_gone_and_can_be_put_again(self, repository: BlobRepository) -> None:
        digest = repository.put_bytes(b"data")
        assert repository.delete(digest) == 4
        assert repository.delete(digest) == 0
        assert not repository.has(digest)
        assert repository.put(digest, [b"data"])

    def test_absent_blobs_are_named(self, repository: BlobRepository) -> None:
        assert not repository.has(ABSENT)
        for call in (repository.locate, repository.open_reader, repository.read, repository.verify):
            with pytest.raises(NotFound, match=ABSENT):
                call(ABSENT)

    @pytest.mark.parametrize("digest", ["", "../../../escape", "A" * 64])
    def test_what_is_no_digest_is_refused(self, repository: BlobRepository, digest: str) -> None:
        with pytest.raises(InvalidInput, match="digest"):
            repository.put(Digest(digest), [b""])

    def test_a_second_reader_sees_what_the_first_wrote(self, repository: BlobRepository, tmp_path: Path) -> None:
        digest = repository.put_bytes(b"data")
        assert self.open_repository(tmp_path / "repository").read(digest) == b"data"
