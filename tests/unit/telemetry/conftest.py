"""Telemetry is one per process; each test gets it fresh and leaves it as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from tessera import telemetry


@pytest.fixture(autouse=True)
def fresh_telemetry() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    telemetry.configure("registry", ring_size=100, json_logs=True)
    yield
    telemetry.configure("", log_level="warning")
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
