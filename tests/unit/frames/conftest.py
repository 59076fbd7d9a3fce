from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A short path: AF_UNIX addresses end at 108 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tsra-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Everything holds under both loops: tests elsewhere use the first, the services the second."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
