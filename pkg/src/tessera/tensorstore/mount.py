"""The folder that a store lives in: a tmpfs of its own where mounting is allowed, else a folder in /dev/shm.

A tmpfs of its own gives huge pages (`within_size`: below the length of each file, so that first touch costs almost nothing and nothing
is wasted; docs/performance.md compares), a hard limit, and one unmount at the end. What an earlier run left behind is taken over, so
that a restarted agent keeps its blobs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tessera.domain.errors import FailedPrecondition
from tessera.tensorstore.local.layout import Layout, WriterLock
from tessera.tensorstore.local.mapped import store_mappings
from tessera.tensorstore.mountinfo import has_huge_pages, mount_of, mounts_below

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 2, 4, 8, 32
MNT_DETACH = 2

HugePages = Literal["never", "within_size", "always"]

_MAY_NOT_MOUNT = (errno.EPERM, errno.EACCES, errno.ENOSYS)
SOURCE = "tessera"
"""What our mounts are mounted from, so that no other tmpfs is ever taken for one of ours."""


@dataclass(frozen=True, slots=True)
class StoreFolder:
    """`own_mount`: a tmpfs of its own at `path`. `adopted`: it was there already, perhaps with blobs."""

    path: Path
    own_mount: bool
    huge_pages: bool
    adopted: bool


def shm_folder_for(mount_point: Path, user_id: int | None = None) -> Path:
    """The folder that stands in where mounting is not allowed; the same for the same mount point and user (None: this process's)."""
    name = f"{os.path.realpath(mount_point)}:{os.geteuid() if user_id is None else user_id}"
    # FNV-1a: only a short, stable name, nothing is secured by it
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return Path("/dev/shm") / f"tessera-{value:016x}"


def prepare_store_folder(
    mount_point: Path,
    budget_bytes: int,
    shm_folder: Path | None = None,
    *,
    may_mount: bool = True,
    huge_pages: HugePages = "within_size",
) -> StoreFolder:
    """Finds or makes the folder of a store with `budget_bytes`, with huge pages as the kernel's option `huge` has it, where it has it.

    In this order: the tmpfs that an earlier run mounted at `mount_point`; the folder that an earlier run made in /dev/shm
    (`shm_folder`); a new tmpfs; a new folder in /dev/shm.

    Raises:
        FailedPrecondition: memory or tmpfs are too small for the budget (says by how much), or the folder belongs to another user.
    """
    folder = shm_folder or shm_folder_for(mount_point)
    if _is_own_mount(mount_point):
        _resize(mount_point, budget_bytes, huge_pages)
        _check_room(mount_point, budget_bytes)
        return StoreFolder(mount_point, own_mount=True, huge_pages=has_huge_pages(mount_point), adopted=True)
    adopted = folder.is_dir() and not folder.is_symlink() and (folder / "lock").exists()
    if not adopted and may_mount and _mount_new(mount_point, budget_bytes, huge_pages):
        return StoreFolder(mount_point, own_mount=True, huge_pages=has_huge_pages(mount_point), adopted=False)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    check_owner(folder)
    _check_room(folder, budget_bytes)
    return StoreFolder(folder, own_mount=False, huge_pages=has_huge_pages(folder), adopted=adopted)


def remove_store_folder(mount_point: Path, shm_folder: Path | None = None) -> list[Path]:
    """Takes away what `prepare_store_folder` made, in this run or an earlier one; returns what went. Readers keep what they map.

    Raises:
        FailedPrecondition: a live process is the writer of the store; names it.
    """
    gone = []
    while _is_own_mount(mount_point):  # mounted twice over is unmounted twice
        _check_no_writer(mount_point)
        _call("umount2", os.fsencode(os.path.realpath(mount_point)), MNT_DETACH)
        gone.append(mount_point)
    if gone:
        mount_point.rmdir()
    folder = shm_folder or shm_folder_for(mount_point)
    if folder.is_dir() and not folder.is_symlink():
        check_owner(folder)
        _check_no_writer(folder)
        foreign = sorted(set(os.listdir(folder)) - {"lock", "blobs", "incoming", "quarantine"})
        if foreign:
            raise FailedPrecondition(f"{folder} holds {', '.join(foreign[:4])}, which no tensor store made; it is left alone")
        shutil.rmtree(folder)
        gone.append(folder)
    return gone


def own_mounts_below(folder: Path) -> list[Path]:
    """Where a tmpfs of ours lies on `folder` or below it, whichever run mounted it. One that somebody has mounted over is left out, and so
    is what cannot be looked at."""
    found = []
    for point in sorted({mount.point for mount in mounts_below(folder)}):
        with suppress(OSError):  # of a file system whose server is away
            if _is_own_mount(point):
                found.append(point)
    return found


def remove_unused_mount(mount_point: Path) -> None:
    """Unmounts the tmpfs of ours at `mount_point`, and removes the folder that it lay on, unless somebody uses it still. What happens
    between the look and the unmount is the kernel's to see: it refuses while anybody has something of the tmpfs open or mapped.

    Raises:
        FailedPrecondition: it is in use, with what is known of by whom, or this process may not unmount it.
    """
    while _is_own_mount(mount_point):  # mounted twice over is unmounted twice
        root = Path(os.path.realpath(mount_point))
        pids = sorted({file.pid for file in store_mappings(root)})  # also those whose mount it is not, in a container
        if pids:
            raise FailedPrecondition(f"{mount_point} is in use: its files are mapped by {', '.join(f'process {pid}' for pid in pids)}")
        try:
            _check_no_writer(root)
            _call("umount2", os.fsencode(root), 0)
        except OSError as error:
            why = "is in use: something of it is open" if error.errno == errno.EBUSY else f"cannot be unmounted: {error.strerror}"
            raise FailedPrecondition(f"{mount_point} {why}") from error
    with suppress(OSError):  # what lay under the mount is not ours to remove
        mount_point.rmdir()


def _is_own_mount(mount_point: Path) -> bool:
    if not mount_point.is_dir():
        return False
    mount = mount_of(mount_point)
    return mount.kind == "tmpfs" and mount.source == SOURCE and str(mount.point) == os.path.realpath(mount_point)


def _size_with_slack(budget_bytes: int) -> int:
    """Files end on whole pages and folders take some, which the budget does not count."""
    return budget_bytes + budget_bytes // 16 + (16 << 20)


def _mount_new(mount_point: Path, budget_bytes: int, huge_pages: HugePages) -> bool:
    """True when a tmpfs was mounted, False when this process may not."""
    _check_memory(budget_bytes)
    made = not mount_point.exists()
    mount_point.mkdir(mode=0o755, parents=True, exist_ok=True)
    for huge in (f"huge={huge_pages},", ""):  # kernels without huge pages in tmpfs refuse the option
        try:
            _mount(mount_point, 0, f"{huge}size={_size_with_slack(budget_bytes)},mode=0755")
            return True
        except OSError as error:
            if error.errno == errno.EINVAL and huge:
                continue
            if made:
                mount_point.rmdir()
            if error.errno in _MAY_NOT_MOUNT:
                return False
            raise
    return False


def _resize(mount_point: Path, budget_bytes: int, huge_pages: HugePages) -> None:
    """Fits an adopted tmpfs to the settings: files that come from now on get huge pages or not, and it has the size of the budget. Where
    that is not allowed, or too much lies in it, it stays."""
    for option in (f"size={_size_with_slack(budget_bytes)}", f"huge={huge_pages}"):
        try:
            _mount(mount_point, MS_REMOUNT, option)
        except OSError as error:
            if error.errno not in (*_MAY_NOT_MOUNT, errno.EINVAL):
                raise


def _mount(mount_point: Path, flags: int, options: str) -> None:
    point = os.fsencode(os.path.realpath(mount_point))
    _call("mount", SOURCE.encode(), point, b"tmpfs", flags | MS_NOSUID | MS_NODEV | MS_NOEXEC, options.encode())


def _call(name: str, *arguments: bytes | int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    wrapped = [ctypes.c_ulong(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    if getattr(libc, name)(*wrapped) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def memory_bytes() -> int:
    """This machine's memory."""
    words = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:")).split()
    return int(words[1]) * 1024


def bytes_in(folder: Path) -> int:
    """What the files below a folder take."""
    return sum(found.lstat().st_blocks * 512 for found in folder.rglob("*") if found.is_file())


def _check_memory(budget_bytes: int) -> None:
    """A tmpfs may be larger than the machine, which ends in the out-of-memory killer: refuse that."""
    total = memory_bytes()
    if budget_bytes > total:
        raise FailedPrecondition(
            f"the tensor store's budget of {budget_bytes} bytes is {budget_bytes - total} more than this machine's memory of {total}"
        )


def _check_room(folder: Path, budget_bytes: int) -> None:
    """What is free plus what the store itself has must reach the budget."""
    seen = os.statvfs(folder)
    free = seen.f_bavail * seen.f_frsize
    own = bytes_in(folder)
    if free + own < budget_bytes:
        raise FailedPrecondition(
            f"the tmpfs of {folder} is {budget_bytes - free - own} bytes too small for the tensor store's budget of {budget_bytes}: "
            f"{free} are free and {own} are the store's; lower the budget or enlarge the tmpfs"
        )
    _check_memory(budget_bytes)


def check_owner(folder: Path, what: str = "the tensor store") -> None:
    """/dev/shm and /tmp are open to everyone: a folder that somebody else put there first is not ours to trust.

    Raises:
        FailedPrecondition: it is a link or another user's; names both users.
    """
    seen = folder.lstat()
    if folder.is_symlink() or seen.st_uid != os.geteuid():
        raise FailedPrecondition(f"{folder} is a link or belongs to user {seen.st_uid}; it cannot be {what} of user {os.geteuid()}")


def _check_no_writer(root: Path) -> None:
    lock = Layout(root).lock
    if lock.exists():
        WriterLock(lock).release()
