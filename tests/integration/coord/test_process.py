"""etcd as a process: the command line is real for every version at hand, and failures say what is wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tessera.coord.binary import EtcdBinary, EtcdProcess, find_etcd, is_healthy
from tessera.domain.errors import FailedPrecondition, Unavailable
from tessera.testing.etcd import free_port


@pytest.mark.parametrize("search_path", [None, ""], ids=["from the path", "packaged"])
async def test_it_starts_answers_stops_and_starts_again(tmp_path: Path, search_path: str | None) -> None:
    process = EtcdProcess(find_etcd(search_path), tmp_path / "etcd", free_port(), free_port())
    port = int(process.endpoint.rpartition(":")[2])
    await process.start()
    pid = process.pid
    assert pid is not None
    assert await is_healthy(port)
    await process.start()
    assert process.pid == pid, "starting what runs changes nothing"
    await process.stop()
    assert process.pid is None
    assert not await is_healthy(port)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await process.start()
    await process.kill()
    assert not await is_healthy(port)
    assert (tmp_path / "etcd").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("which", ["client", "peer"])
async def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, which: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        ports = (taken, free_port()) if which == "client" else (free_port(), taken)
        process = EtcdProcess(find_etcd(), tmp_path / "etcd", *ports)
        with pytest.raises(FailedPrecondition, match=f"etcd's {which} port {taken} on 127.0.0.1 is in use"):
            await process.start()
    assert process.pid is None
    assert not (tmp_path / "etcd").exists()


async def test_an_etcd_that_ends_at_once_leaves_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "etcd-that-refuses"
    script.write_text("#!/bin/sh\necho 'disk on fire' >&2\nexit 3\n")
    script.chmod(0o755)
    process = EtcdProcess(EtcdBinary(script, "3.4.23"), tmp_path / "etcd", free_port(), free_port())
    with pytest.raises(Unavailable, match=r"(?s)ended with 3.*disk on fire"):
        await process.start()
    assert process.pid is None


async def test_an_etcd_that_never_answers_is_stopped(tmp_path: Path) -> None:
    script = tmp_path / "etcd-that-sleeps"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    process = EtcdProcess(EtcdBinary(script, "3.4.23"), tmp_path / "etcd", free_port(), free_port(), timeout_s=0.3)
    with pytest.raises(Unavailable, match=r"not healthy within 0.3 s"):
        await process.start()
    assert process.pid is None
