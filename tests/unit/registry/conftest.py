"""A registry over fakes for each test."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

# The fakes are plain classes that several test files import.
sys.path.insert(0, str(Path(__file__).parent))

from registry_world import Registry


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with Registry(tmp_path) as registry:
        yield registry
