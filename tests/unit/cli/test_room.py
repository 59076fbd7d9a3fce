"""All nodes' stores against what this machine has, before anything starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tessera.cli.embedded import room
from tessera.cli.embedded.layout import Layout
from tessera.domain.errors import FailedPrecondition
from tessera.tensorstore.mount import prepare_store_folder, shm_folder_for

GIB = 1 << 30


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    """Two nodes of 4 GiB on a machine with 8 GiB."""
    monkeypatch.setattr(room, "memory_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(room, "may_mount", lambda: True)
    found = Layout(tmp_path, nodes=2, store_bytes=4 * GIB, run_folder=tmp_path / "tessera-run")
    yield found
    for point in found.stores():
        shutil.rmtree(shm_folder_for(point), ignore_errors=True)


def test_what_fits_exactly_is_taken(layout: Layout) -> None:
    room.check_stores_fit(layout)


def test_each_fits_alone_but_not_all_together(layout: Layout) -> None:
    words = rf"--nodes 3 with --store {4 * GIB} bytes need {12 * GIB} bytes of memory, {4 * GIB} more than this machine's {8 * GIB}"
    with pytest.raises(FailedPrecondition, match=words):
        room.check_stores_fit(replace(layout, nodes=3))


def test_without_mounts_shared_memory_is_the_limit(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=6 * GIB))
    room.check_stores_fit(layout)
    monkeypatch.setattr(room, "may_mount", lambda: False)
    with pytest.raises(FailedPrecondition, match=rf"{8 * GIB} bytes in /dev/shm \(.*\), {2 * GIB} more than the {6 * GIB} there"):
        room.check_stores_fit(layout)


def test_what_the_stores_have_already_counts_as_room(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare_store_folder(layout.stores()[0], 1 << 20, may_mount=False).path
    (folder / "blobs").mkdir()
    (folder / "blobs" / "one").write_bytes(b"x" * 4096)
    monkeypatch.setattr(room, "may_mount", lambda: False)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=8 * GIB - 4096))
    room.check_stores_fit(layout)
    (folder / "blobs" / "one").unlink()
    with pytest.raises(FailedPrecondition, match="4096 more than"):
        room.check_stores_fit(layout)


@pytest.mark.parametrize("value", ["0", "false", "OFF"])
def test_a_setting_can_forbid_mounts(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TESSERA_MAY_MOUNT", value)
    assert room.may_mount() is False
