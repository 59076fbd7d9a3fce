"""The store's folder: own tmpfs or /dev/shm, taken over from an earlier run, removed at the end, refused when too small."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.domain.errors import FailedPrecondition, ResourceExhausted
from tessera.tensorstore import mount
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mapping import BlobMap
from tessera.tensorstore.mount import (
    HugePages,
    own_mounts_below,
    prepare_store_folder,
    remove_store_folder,
    remove_unused_mount,
    shm_folder_for,
)
from tessera.tensorstore.mountinfo import Mount, mount_of, mounts_below
from tessera.testing.blobs import StepClock, blob_of, put

BUDGET = 8 << 20

MOUNTS = """\
22 1 0:20 / / rw,relatime - ext4 /dev/root rw
23 22 0:21 / /run/a\\040b rw,nosuid - tmpfs tessera rw,size=1024k,huge=within_size
24 22 0:22 / /run rw,nosuid shared:1 - tmpfs other rw,size=1024k
25 22 0:23 / /run/over rw - tmpfs first rw
26 22 0:24 / /run/over rw - tmpfs second rw,huge=always
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/etc/passwd", Mount(Path("/"), "ext4", "/dev/root", "rw")),
        ("/run/a b/store", Mount(Path("/run/a b"), "tmpfs", "tessera", "rw,size=1024k,huge=within_size")),
        ("/run/a", Mount(Path("/run"), "tmpfs", "other", "rw,size=1024k")),
        ("/running", Mount(Path("/"), "ext4", "/dev/root", "rw")),
        ("/run/over", Mount(Path("/run/over"), "tmpfs", "second", "rw,huge=always")),
    ],
)
def test_the_mount_of_a_path_is_the_nearest_and_the_uppermost(path: str, found: Mount) -> None:
    assert mount_of(Path(path), MOUNTS) == found


def test_mounts_below_a_folder_are_its_own_and_those_inside() -> None:
    assert [str(found.point) for found in mounts_below(Path("/run"), MOUNTS)] == ["/run/a b", "/run", "/run/over", "/run/over"]
    assert [found.source for found in mounts_below(Path("/run/a b"), MOUNTS)] == ["tessera"]
    assert mounts_below(Path("/run/a"), MOUNTS) == []


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "run/store"
    yield point
    remove_store_folder(point)
    assert not point.exists()
    assert not shm_folder_for(point).exists()


def test_where_mounting_is_not_allowed_a_folder_in_shared_memory_stands_in(point: Path) -> None:
    folder = prepare_store_folder(point, BUDGET, may_mount=False)
    assert folder.path == shm_folder_for(point)
    assert mount_of(folder.path).kind == "tmpfs"
    assert (folder.own_mount, folder.adopted) == (False, False)
    assert folder.path.stat().st_mode & 0o777 == 0o755
    assert not point.exists()
    with LocalTensorStore(folder.path, BUDGET, StepClock()) as store:
        digest = put(store, blob_of(1, 100))
    again = prepare_store_folder(point, BUDGET)  # also where mounting is allowed by now: runtimes map what lies there
    assert again.path == folder.path
    assert again.adopted
    with LocalTensorStore(again.path, BUDGET, StepClock()) as store:
        assert store.has(digest)
    assert remove_store_folder(point) == [folder.path]
    assert remove_store_folder(point) == []


def test_a_refused_mount_falls_back(point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "mount: Operation not permitted")

    monkeypatch.setattr(mount, "_call", refuse)
    folder = prepare_store_folder(point, BUDGET)
    assert not folder.own_mount
    assert not point.exists()


def test_a_store_with_a_live_writer_is_not_removed(point: Path) -> None:
    folder = prepare_store_folder(point, BUDGET, may_mount=False)
    with (
        LocalTensorStore(folder.path, BUDGET, StepClock()) as store,
        pytest.raises(FailedPrecondition, match=f"process {os.getpid()} is its writer"),
    ):
        remove_store_folder(point)
    assert folder.path.exists()
    assert not store.check()[1:]


def test_a_folder_with_something_else_in_it_is_left_alone(point: Path) -> None:
    folder = prepare_store_folder(point, BUDGET, may_mount=False).path
    (folder / "thesis.tex").touch()
    with pytest.raises(FailedPrecondition, match=r"thesis\.tex"):
        remove_store_folder(point)
    (folder / "thesis.tex").unlink()


def test_a_link_where_the_folder_should_be_is_refused_and_left_alone(point: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shm_folder_for(point).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match="is a link"):
        prepare_store_folder(point, BUDGET, may_mount=False)
    assert remove_store_folder(point) == []
    shm_folder_for(point).unlink()
    assert (tmp_path / "elsewhere").is_dir()


def test_a_budget_beyond_the_tmpfs_is_refused_by_how_much(point: Path) -> None:
    free = os.statvfs("/dev/shm")
    room = free.f_bavail * free.f_frsize
    with pytest.raises(FailedPrecondition, match=r"the tmpfs of /dev/shm/tessera-\w+ is \d+ bytes too small for .* budget of"):
        prepare_store_folder(point, room + (1 << 40), may_mount=False)


def test_what_the_store_has_already_counts_as_room(point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare_store_folder(point, BUDGET, may_mount=False).path
    with LocalTensorStore(folder, BUDGET, StepClock()) as store:
        put(store, blob_of(1, 4 << 20))
    small = os.statvfs_result((4096, 4096, 2048, 1024, 1024, 0, 0, 0, 0, 255))  # 4 MiB free
    monkeypatch.setattr("tessera.tensorstore.mount.os.statvfs", lambda path: small)
    assert prepare_store_folder(point, BUDGET, may_mount=False).adopted
    # the page that the lock takes is the store's too
    with pytest.raises(FailedPrecondition, match=rf"is {(1 << 20) - 4096} bytes too small"):
        prepare_store_folder(point, BUDGET + (1 << 20), may_mount=False)


def test_names_of_shared_memory_folders_differ_by_mount_point(tmp_path: Path) -> None:
    assert shm_folder_for(tmp_path / "a") != shm_folder_for(tmp_path / "b")
    assert shm_folder_for(tmp_path / "a") == shm_folder_for(tmp_path / "x/../a")


@pytest.mark.root
def test_a_tmpfs_of_its_own_is_mounted_taken_over_resized_and_removed(point: Path) -> None:
    folder = prepare_store_folder(point, BUDGET)
    assert (folder.path, folder.own_mount, folder.adopted) == (point, True, False)
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {point} " in line)
    kind, options = line.split()[2:4]
    assert kind == "tmpfs"
    assert {"nosuid", "nodev", "noexec"} <= set(options.split(","))
    assert folder.huge_pages is ("huge=within_size" in options)
    assert point.stat().st_mode & 0o777 == 0o755
    with LocalTensorStore(point, BUDGET, StepClock()) as store:
        digest = put(store, blob_of(1, 100_000))
        assert store.status().huge_pages is folder.huge_pages
        with pytest.raises(FailedPrecondition, match="is its writer"):
            remove_store_folder(point)
    larger = prepare_store_folder(point, 4 * BUDGET)
    assert (larger.adopted, larger.own_mount) == (True, True)
    seen = os.statvfs(point)
    assert seen.f_blocks * seen.f_frsize >= 4 * BUDGET
    assert (point / "blobs" / digest).read_bytes() == blob_of(1, 100_000)
    assert remove_store_folder(point) == [point]
    assert f" {point} " not in Path("/proc/mounts").read_text()


@pytest.mark.root
def test_large_files_on_an_own_tmpfs_get_huge_pages(point: Path) -> None:
    folder = prepare_store_folder(point, 64 << 20)
    with LocalTensorStore(point, 64 << 20, StepClock()) as store:
        path = store.path(put(store, blob_of(1, 16 << 20)))
        assert path.stat().st_blocks * 512 == 16 << 20  # nothing is wasted
        maps = BlobMap()
        view = maps.open(path)
        maps.touch(path)
        smaps = Path("/proc/self/smaps").read_text().partition(str(path))[2]
        mapped_huge = next(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("ShmemPmdMapped:"))
        assert mapped_huge == (16 << 10 if folder.huge_pages else 0)
        assert len(view) == 16 << 20


@pytest.mark.root
@pytest.mark.parametrize("huge_pages", ["never", "within_size", "always"])
def test_huge_pages_are_as_asked_for_also_where_the_tmpfs_was_there(point: Path, huge_pages: HugePages) -> None:
    def options() -> str:
        return mount_of(point).options

    folder = prepare_store_folder(point, 64 << 20, huge_pages=huge_pages)
    assert folder.huge_pages is (huge_pages != "never")
    assert (f"huge={huge_pages}" in options()) is (huge_pages != "never")  # the kernel does not show its default
    with LocalTensorStore(point, 64 << 20, StepClock()) as store:
        path = store.path(put(store, blob_of(1, (2 << 20) + 4096)))
        assert path.stat().st_blocks * 512 == {"never": (2 << 20) + 4096, "within_size": (2 << 20) + 4096, "always": 4 << 20}[huge_pages]
    again = prepare_store_folder(point, 64 << 20, huge_pages="never")
    assert (again.adopted, again.huge_pages, "huge=" in options()) == (True, False, False)


@pytest.mark.root
def test_a_budget_beyond_the_machine_is_refused_before_mounting(point: Path) -> None:
    with pytest.raises(FailedPrecondition, match="more than this machine's memory"):
        prepare_store_folder(point, 1 << 50)
    assert not point.exists()


@pytest.mark.root
def test_a_tmpfs_of_somebody_else_is_never_taken_or_unmounted(point: Path) -> None:
    point.mkdir(parents=True)
    mount._call("mount", b"other", os.fsencode(point), b"tmpfs", 0, b"size=1m")
    try:
        assert remove_store_folder(point) == []
        assert f"other {point} " in Path("/proc/mounts").read_text()
    finally:
        mount._call("umount2", os.fsencode(point), 0)
        point.rmdir()


@pytest.mark.root
def test_a_mount_goes_when_its_last_user_has_gone(point: Path) -> None:
    prepare_store_folder(point, BUDGET)
    assert own_mounts_below(point.parent) == [point]
    with LocalTensorStore(point, BUDGET, StepClock()) as store:
        path = store.path(put(store, blob_of(1, 100)))
        with pytest.raises(FailedPrecondition, match=f"process {os.getpid()} is its writer"):
            remove_unused_mount(point)
    maps = BlobMap()
    maps.open(path)
    with pytest.raises(FailedPrecondition, match=f"mapped by process {os.getpid()}$"):
        remove_unused_mount(point)
    maps.close(path)
    opened = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(FailedPrecondition, match="something of it is open"):
            remove_unused_mount(point)
    finally:
        os.close(opened)
    assert path.read_bytes() == blob_of(1, 100)
    remove_unused_mount(point)
    assert own_mounts_below(point.parent) == []
    assert not point.exists()
    remove_unused_mount(point)


@pytest.mark.root
def test_what_is_mounted_by_others_below_a_folder_is_none_of_ours(point: Path) -> None:
    covered, foreign = point.parent / "covered", point.parent / "foreign"
    prepare_store_folder(covered, BUDGET)
    foreign.mkdir()
    for each in (covered, foreign):
        mount._call("mount", b"other", os.fsencode(each), b"tmpfs", 0, b"size=1m")
    try:
        assert own_mounts_below(point.parent) == []
        for each in (covered, foreign):
            remove_unused_mount(each)
            assert mount_of(each).source == "other"
    finally:
        for each in (covered, foreign):
            mount._call("umount2", os.fsencode(each), 0)
        remove_store_folder(covered)


@pytest.mark.root
def test_a_full_tmpfs_is_survived(point: Path) -> None:
    """Somebody else's bytes on the store's file system: the writer is refused with a reason, what is there stays."""
    prepare_store_folder(point, BUDGET)
    seen = os.statvfs(point)
    with LocalTensorStore(point, BUDGET, StepClock()) as store:
        kept = put(store, blob_of(1, 1 << 20))
        with (point / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, seen.f_bavail * seen.f_frsize - (2 << 20))
        with pytest.raises(ResourceExhausted, match="file system is full"):
            put(store, blob_of(2, 4 << 20))
        assert store.check(deep=True) == []
        assert store.digests() == {kept: 1 << 20}
        (point / "ballast").unlink()
        put(store, blob_of(2, 4 << 20))
