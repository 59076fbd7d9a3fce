"""On a local folder a put is on the disk, file and folder, before it returns."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tessera.domain.errors import DataCorrupted, ResourceExhausted
from tessera.repository import Repository
from tessera.repository.store import LOCAL_RANGE_BYTES
from tessera.tensorstore.artifact import digest_of


class Recorder:
    """Notes what is synced and linked, in order, by path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        real_sync, real_link = os.fsync, os.link

        def fsync(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            self.seen.append(f"sync {'folder' if os.path.isdir(path) else 'file'} {os.path.basename(path)[:11]}")
            real_sync(fd)

        def link(source: str, target: str) -> None:
            self.seen.append("link")
            real_link(source, target)

        monkeypatch.setattr("tessera.repository.durable.os.fsync", fsync)
        monkeypatch.setattr("tessera.repository.durable.os.link", link)


def test_file_and_folders_are_synced_in_the_right_order(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = digest_of(b"data")
    recorder = Recorder(monkeypatch)
    repository.put(digest, [b"data"])
    assert recorder.seen == ["sync folder blobs", "sync file .unfinished", "link", f"sync folder {digest[:2]}"]
    recorder.seen.clear()
    assert not repository.put(digest, [b"data"])
    assert recorder.seen == [f"sync folder {digest[:2]}"]


def test_every_new_folder_is_synced_from_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    Repository((tmp_path / "state/repository").as_uri())
    assert recorder.seen == [f"sync folder {tmp_path.name[:11]}", "sync folder state", "sync folder repository"]


def test_a_folder_that_somebody_else_just_made_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Repository(tmp_path.as_uri()) for _ in range(2))
    digest = first.put_bytes(b"data")
    first.delete(digest)
    recorder = Recorder(monkeypatch)
    second.put_bytes(b"data")
    assert recorder.seen[0] == "sync folder blobs"


def test_what_is_stored_cannot_be_written(repository: Repository, tmp_path: Path) -> None:
    digest = repository.put_bytes(b"data")
    path = tmp_path / "repository/blobs" / digest[:2] / digest
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.stat().st_nlink == 1


def test_a_file_system_without_links_renames(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("tessera.repository.durable.os.link", refuse)
    digest = digest_of(b"data")
    assert repository.put(digest, [b"data"])
    assert repository.read(digest) == b"data"
    assert repository.sweep() == 0


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_full_or_broken_disk_leaves_nothing(repository: Repository, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    digest = digest_of(b"data")
    repository.put_bytes(b"x")
    with monkeypatch.context() as patched:
        patched.setattr(f"tessera.repository.durable.os.{call}", fail)
        with pytest.raises(ResourceExhausted, match="is full: No space"):
            repository.put(digest, [b"data"])
    assert not repository.has(digest)
    assert repository.sweep() == 0
    assert repository.put(digest, [b"data"])


def test_what_a_dead_writer_left_is_invisible_and_swept(repository: Repository, tmp_path: Path) -> None:
    digest = repository.put_bytes(b"data")
    left = tmp_path / "repository/blobs" / digest[:2] / ".unfinished-1-aa"
    left.write_bytes(b"half")
    assert dict(repository.digests()) == {digest: 4}
    assert repository.sweep() == 1
    assert not left.exists()
    assert repository.read(digest) == b"data"


def test_a_file_that_shrinks_while_it_is_read_is_said(repository: Repository, tmp_path: Path) -> None:
    data = bytes(LOCAL_RANGE_BYTES + (2 << 20))
    digest = repository.put_bytes(data)
    chunks = repository.open_reader(digest)
    next(chunks)
    path = tmp_path / "repository/blobs" / digest[:2] / digest
    path.chmod(0o644)
    os.truncate(path, LOCAL_RANGE_BYTES + (1 << 20))
    with pytest.raises(DataCorrupted, match=f"{digest}.* ends {1 << 20} bytes early"):
        list(chunks)
