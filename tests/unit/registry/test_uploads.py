"""Files on their way: complete under their digest, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.domain.errors import FailedPrecondition, InvalidInput, ResourceExhausted
from tessera.domain.ids import Digest, TrustDomain
from tessera.registry.adapters.uploads import UploadFolder
from tessera.registry.core.manifest import SourceFile
from tessera.tensorstore.artifact import digest_of

D = TrustDomain("default")
DATA = b"weights" * 100
FILE = SourceFile("a/model.safetensors", len(DATA), digest_of(DATA))
EMPTY = SourceFile("empty", 0, digest_of(b""))


@pytest.fixture
def uploads(tmp_path: Path) -> UploadFolder:
    return UploadFolder(tmp_path / "uploads", 10_000)


def send(uploads: UploadFolder, data: bytes, digest: Digest) -> None:
    incoming = uploads.receive(D, digest)
    for offset in range(0, max(1, len(data)), 64):
        incoming.write(offset, data[offset : offset + 64])
    incoming.finish()


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_whole_file_is_never_asked_for_again(uploads: UploadFolder, tmp_path: Path) -> None:
    assert uploads.missing(D, [FILE, EMPTY, FILE]) == [FILE.digest, EMPTY.digest]
    send(uploads, DATA, FILE.digest)
    assert uploads.missing(D, [FILE, EMPTY]) == [EMPTY.digest]
    send(uploads, b"", EMPTY.digest)
    assert UploadFolder(tmp_path / "uploads", 10_000).missing(D, [FILE, EMPTY]) == []
    assert uploads.missing(TrustDomain("other"), [FILE]) == [FILE.digest]


def test_interrupted_file_leaves_nothing_and_starts_over(uploads: UploadFolder, tmp_path: Path) -> None:
    died = uploads.receive(D, FILE.digest)
    died.write(0, DATA[:10])
    assert len(files(tmp_path)) == 1
    assert files(tmp_path) != [FILE.digest]
    again = UploadFolder(tmp_path / "uploads", 10_000)
    assert files(tmp_path) == []
    send(again, DATA, FILE.digest)
    assert files(tmp_path) == [FILE.digest]
    died.discard()


def test_other_bytes_than_the_digest_are_refused_by_path(uploads: UploadFolder, tmp_path: Path) -> None:
    uploads.expect(D, [FILE])
    incoming = uploads.receive(D, FILE.digest)
    incoming.write(0, b"x" * len(DATA))
    with pytest.raises(InvalidInput, match=r"file a/model.safetensors: 700 bytes with digest"):
        incoming.finish()
    assert files(tmp_path) == []


def test_file_larger_than_it_said(uploads: UploadFolder) -> None:
    uploads.expect(D, [FILE])
    incoming = uploads.receive(D, FILE.digest)
    with pytest.raises(InvalidInput, match=r"size of file a/model\.safetensors 701: at most 700 bytes"):
        incoming.write(0, DATA + b"x")
    incoming.discard()
    unknown = uploads.receive(D, EMPTY.digest)
    with pytest.raises(InvalidInput, match="at most 10000 bytes"):
        unknown.write(0, bytes(10_001))
    unknown.discard()


@pytest.mark.parametrize("size", [10, 10_000])  # found out when the file is finished; when a piece is written
def test_full_disk_is_said_and_leaves_nothing(uploads: UploadFolder, tmp_path: Path, size: int) -> None:
    data = bytes(size)
    incoming = uploads.receive(D, digest_of(data))
    incoming._file.close()

    def bring() -> None:
        incoming.write(0, data)
        incoming.finish()

    with Path("/dev/full").open("wb") as incoming._file:
        with pytest.raises(ResourceExhausted, match=r"uploads is full after \d+ bytes of it: No space left on device"):
            bring()
        incoming.discard()
    assert files(tmp_path) == []


def test_pieces_follow_one_another(uploads: UploadFolder) -> None:
    incoming = uploads.receive(D, FILE.digest)
    incoming.write(0, DATA[:10])
    with pytest.raises(InvalidInput, match="10 bytes arrived so far"):
        incoming.write(11, DATA[10:])
    incoming.discard()


def test_laid_out_folder_has_the_paths_and_cannot_be_written(uploads: UploadFolder, tmp_path: Path) -> None:
    send(uploads, DATA, FILE.digest)
    uploads.lay_out(D, [FILE], tmp_path / "source")
    laid = tmp_path / "source/a/model.safetensors"
    assert laid.read_bytes() == DATA
    assert laid.stat().st_mode & 0o222 == 0
    with pytest.raises(FailedPrecondition, match=r"file empty .* was not uploaded"):
        uploads.lay_out(D, [EMPTY], tmp_path / "other")
    lying = SourceFile("a", 5, FILE.digest)
    with pytest.raises(InvalidInput, match="size of a 5: the uploaded file has 700 bytes"):
        uploads.lay_out(D, [lying], tmp_path / "third")


def test_sweep_removes_what_was_not_used_but_what_jobs_need(uploads: UploadFolder) -> None:
    send(uploads, DATA, FILE.digest)
    send(uploads, b"", EMPTY.digest)
    assert uploads.sweep(0.0, []) == 0
    assert uploads.sweep(1e12, [(D, FILE.digest)]) == 0
    assert uploads.missing(D, [FILE, EMPTY]) == [EMPTY.digest]
    assert uploads.sweep(1e12, []) == len(DATA)
