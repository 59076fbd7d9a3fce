"""A real etcd for a test: on free loopback ports, gone afterwards."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tessera.coord.binary import EtcdBinary, EtcdProcess, find_etcd


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_etcd(folder: Path, binary: EtcdBinary | None = None) -> Iterator[EtcdProcess]:
    """Starts an etcd with its data below `folder` and ends it by force. Not to be entered inside a running event loop."""
    process = EtcdProcess(binary or find_etcd(), folder / "etcd", free_port(), free_port())
    asyncio.run(process.start())
    try:
        yield process
    finally:
        asyncio.run(process.kill())
