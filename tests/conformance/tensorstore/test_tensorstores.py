"""The tensor store suite over every implementation."""

from __future__ import annotations

from pathlib import Path

from tessera.clock import Clock
from tessera.tensorstore.decorators.failing import FailingTensorStore
from tessera.tensorstore.interface import TensorStore
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.conformance_tensorstore import TensorStoreConformance


class TestLocal(TensorStoreConformance):
    def open_store(self, root: Path, budget_bytes: int, clock: Clock) -> TensorStore:
        return LocalTensorStore(root, budget_bytes, clock)


class TestFailingWithoutFailpoints(TensorStoreConformance):
    def open_store(self, root: Path, budget_bytes: int, clock: Clock) -> TensorStore:
        return FailingTensorStore(LocalTensorStore(root, budget_bytes, clock))
