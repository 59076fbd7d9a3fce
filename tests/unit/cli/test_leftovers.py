"""What `tessera down` looks for, finds and removes, and whom it leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.cli.embedded.layout import Layout
from tessera.cli.embedded.leftovers import belongs, clear_files, leftovers, processes_of
from tessera.tensorstore.mount import prepare_store_folder, shm_folder_for

STATE, RUN = Path("/s/state"), Path("/tmp/tessera-0123456789")
LAYOUT = Layout(STATE, nodes=2, run_folder=RUN)


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    (tmp_path / "state").mkdir()
    found = Layout(tmp_path / "state", nodes=2, run_folder=tmp_path / "tessera-run")
    yield found
    for point in found.stores():
        shutil.rmtree(shm_folder_for(point), ignore_errors=True)


@pytest.mark.parametrize(
    "command",
    [
        ["/venv/bin/python", "-m", "tessera.gateway", "--config", "/s/state/config/gateway.yaml"],
        ["python", "-P", "-m", "tessera.registry.importer", "/s/state/registry/jobs/1/task.json", "12"],
        ["python", "-m", "tessera.runtime.zygote", "--socket", "/tmp/tessera-0123456789/n0/zygote-ort.sock"],
        ["python", "-m", "tessera.node_agent.relay", "--run-folder", "/tmp/tessera-0123456789/n1"],
        ["/usr/bin/etcd", "--name=tessera", "--data-dir=/s/state/etcd"],
    ],
)
def test_our_own_processes_are_ours(command: list[str]) -> None:
    assert belongs(command, LAYOUT)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["vim", "/s/state/config/gateway.yaml"],
        ["tail", "-f", "/s/state/logs/gateway.log"],
        ["python", "/home/me/watch.py", "-m", "tessera.gateway", "/s/state/config/gateway.yaml"],
        ["python", "-m", "http.server", "--directory", "/s/state/config"],
        ["python", "-m", "tessera.gateway", "--config", "/s/state-2/config/gateway.yaml"],
        ["python", "-m", "tessera.gateway", "--config", "/elsewhere/s/state/config/gateway.yaml"],
        ["python", "-m", "tessera.cli", "model", "register", "m", "/s/state/model.pt2"],
        ["/usr/bin/etcd", "--data-dir=/s/state/etcd-2"],
        ["etcdctl", "snapshot", "status", "/s/state/etcd"],
        ["grep", "-rm", "tessera.gateway", "/s/state/logs/gateway.log"],
    ],
)
def test_strangers_that_mention_our_folders_are_not(command: list[str]) -> None:
    assert not belongs(command, LAYOUT)


def test_only_our_processes_of_our_user_are_found(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = "import sys; print(flush=True); sys.stdin.read()"
    stranger = [sys.executable, "-c", idle, str(layout.config / "x")]
    ours = ["etcd", "-c", idle, f"--data-dir={layout.etcd_data}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(stranger, **pipes) as first,  # type: ignore[call-overload]  # the same pipes for both
        subprocess.Popen(ours, executable=sys.executable, **pipes) as second,  # type: ignore[call-overload]
    ):
        try:
            first.stdout.readline(), second.stdout.readline()  # both run by now
            assert [process.pid for process in processes_of(layout)] == [second.pid]
            monkeypatch.setattr("tessera.cli.embedded.leftovers.owner_of", lambda layout: os.geteuid() + 1)
            assert processes_of(layout) == []
        finally:
            for process in (first, second):
                process.kill()


def test_stores_in_shared_memory_are_found_and_removed(layout: Layout) -> None:
    """What a user without mount rights has: no mount, a folder of /dev/shm per node."""
    folders = [prepare_store_folder(point, 1 << 20, may_mount=False).path for point in layout.stores()]
    assert leftovers(layout) == [f"tmpfs folder {folder}" for folder in folders]
    clear_files(layout)
    assert leftovers(layout) == []
    assert not any(folder.exists() for folder in folders)


def test_stores_of_more_nodes_than_the_last_up_had_are_found(layout: Layout) -> None:
    earlier = Layout(layout.state, nodes=5, run_folder=layout.run).stores()[4]
    folder = prepare_store_folder(earlier, 1 << 20, may_mount=False).path
    try:
        assert leftovers(layout) == [f"tmpfs folder {folder}"]
        clear_files(layout)
        assert not folder.exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.root
def test_mounted_stores_are_found_and_unmounted(layout: Layout) -> None:
    point = layout.stores()[1]
    prepared = prepare_store_folder(point, 1 << 20)
    assert prepared.own_mount
    assert f"mount {point}" in leftovers(layout)
    clear_files(layout)
    assert (leftovers(layout), layout.run.exists()) == ([], False)


def test_what_no_store_made_is_left_alone_and_named(layout: Layout) -> None:
    folder = prepare_store_folder(layout.stores()[0], 1 << 20, may_mount=False).path
    (folder / "thesis.tex").touch()
    clear_files(layout)
    assert leftovers(layout) == [f"tmpfs folder {folder}"]


def test_sockets_are_named_and_go_with_the_run_folder(layout: Layout) -> None:
    layout.node_run(0).mkdir(parents=True)
    (layout.node_run(0) / "control.sock").touch()
    assert leftovers(layout) == [f"file {layout.node_run(0) / 'control.sock'}"]
    clear_files(layout)
    assert leftovers(layout) == []
