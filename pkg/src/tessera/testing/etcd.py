"""A real etcd for a test: on free loopback ports, gone afterwards."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tessera.coord.binary import EtcdBinary, EtcdProcess, find_etcd

PORTS = range(11_000, 27_000)
"""Below those that the kernel gives to who asks for any: a service that is started may ask for one before it binds the one that it was
told. Above those that users' services have."""

_given: set[int] = set()
_chance = random.SystemRandom()  # Hypothesis seeds the usual one


def free_port() -> int:
    """A loopback port that nothing listens on now, another one each time."""
    while True:
        port = _chance.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
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
