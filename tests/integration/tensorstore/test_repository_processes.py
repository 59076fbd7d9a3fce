"""The repository between real processes: a put that is killed, many puts of one blob, a disk that is full."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.domain.errors import ResourceExhausted
from tessera.repository import Repository
from tessera.tensorstore.artifact import digest_of
from tessera.testing.blobs import blob_of

from .conftest import Child

MIB = 1 << 20


def test_a_put_that_is_killed_leaves_nothing_visible(tmp_path: Path, start: Callable[..., Child], line: Callable[[Child], str]) -> None:
    child = start(
        """
data = blob_of(1, 4 << 20)
def chunks():
    yield data[: 2 << 20]
    say("half")
    time.sleep(60)
Repository(Path(sys.argv[1]).as_uri()).put(digest_of(data), chunks())
""",
        tmp_path,
    )
    assert line(child) == "half"
    child.kill()
    child.wait(10)
    repository = Repository(tmp_path.as_uri())
    digest = digest_of(blob_of(1, 4 * MIB))
    assert not repository.has(digest)
    assert list(repository.digests()) == []
    assert repository.sweep() == 1
    assert repository.put(digest, [blob_of(1, 4 * MIB)])
    assert repository.verify(digest)


def test_of_many_processes_one_hears_that_its_blob_was_new(
    tmp_path: Path, start: Callable[..., Child], line: Callable[[Child], str]
) -> None:
    script = """
repository = Repository(Path(sys.argv[1]).as_uri())
say("ready")
sys.stdin.readline()
for seed in range(20):
    data = blob_of(seed, 100_000)
    say(int(repository.put(digest_of(data), [data])))
"""
    children = [start(script, tmp_path) for _ in range(3)]
    for child in children:
        assert line(child) == "ready"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    answers = [[int(line(child)) for _ in range(20)] for child in children]
    assert [sum(answer) for answer in zip(*answers, strict=True)] == [1] * 20
    repository = Repository(tmp_path.as_uri())
    assert all(repository.verify(digest) for digest, _ in repository.digests())
    assert repository.sweep() == 0


@pytest.mark.root
def test_a_full_disk_is_said_and_leaves_nothing_half(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)], check=True)
    try:
        repository = Repository((tmp_path / "repository").as_uri())
        kept = repository.put_bytes(bytes(1 << 20))
        large = bytes(range(256)) * (3 << 12)
        with pytest.raises(ResourceExhausted, match=r"repository file://.* is full"):
            repository.put_bytes(large)
        assert dict(repository.digests()) == {kept: 1 << 20}
        assert repository.verify(kept)
        assert repository.sweep() == 0
        assert repository.put_bytes(b"small") == digest_of(b"small")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
