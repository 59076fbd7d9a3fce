from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

PRELUDE = """
import sys, time
from pathlib import Path
from tessera.clock import SystemClock
from tessera.repository import Repository
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mapping import BlobMap
from tessera.testing.blobs import blob_of, put
def say(*words):
    print(*words, flush=True)
"""

Child = subprocess.Popen[str]


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Starts another Python process that runs `script` after the prelude; whatever still runs at the end is killed."""
    children: list[Child] = []

    def start_child(script: str, *arguments: object) -> Child:
        command = [sys.executable, "-c", PRELUDE + script, *map(str, arguments)]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return children[-1]

    yield start_child
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def line() -> Callable[[Child], str]:
    """The next line that a child says; fails when it ended instead."""

    def read(child: Child) -> str:
        assert child.stdout is not None
        text = child.stdout.readline().strip()
        assert text, f"the child ended with {child.wait(10)}"
        return text

    return read
