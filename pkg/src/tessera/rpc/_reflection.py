"""Reflection over several descriptor pools.

The Open Inference messages live in a private pool (docs/adr/0004), ours in the default one; a reflection client must see both. The
servicer only looks things up, so a pool that asks each of several in turn is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

T = TypeVar("T")


class CombinedPool:
    """The look-ups of `DescriptorPool` that reflection uses, over several pools: the first that knows answers.

    A descriptor belongs to its pool, so an extension is looked up in the pool of the message that it extends.
    """

    def __init__(self, private: Sequence[DescriptorPool]) -> None:
        self._pools = (*private, descriptor_pool.Default())

    def FindFileByName(self, name: str) -> FileDescriptor:
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Any:
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Any, number: int) -> FieldDescriptor:
        found: FieldDescriptor = message.file.pool.FindExtensionByNumber(message, number)
        return found

    def FindAllExtensions(self, message: Any) -> list[FieldDescriptor]:
        found: list[FieldDescriptor] = message.file.pool.FindAllExtensions(message)
        return found

    def _first(self, look_up: Callable[[DescriptorPool], T]) -> T:
        for pool in self._pools[:-1]:
            try:
                return look_up(pool)
            except KeyError:
                continue
        return look_up(self._pools[-1])
