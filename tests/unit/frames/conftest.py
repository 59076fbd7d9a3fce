from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A short path: AF_UNIX addresses end at 108 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tsra-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
