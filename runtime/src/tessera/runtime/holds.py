"""The runtime's claim on digests: what loading and loaded instances use. On the event loop alone, so that `hello` shows what is true."""

from __future__ import annotations

from collections.abc import Iterable

from tessera.domain.ids import Digest, InstanceId


class Holds:
    """A digest is held while an instance uses it, from before it is mapped."""

    def __init__(self) -> None:
        self._used: dict[InstanceId, frozenset[Digest]] = {}

    def use(self, instance_id: InstanceId, digests: Iterable[Digest]) -> None:
        """The load of `instance_id` begins."""
        self._used[instance_id] = frozenset(digests)

    def end(self, instance_id: InstanceId) -> list[Digest]:
        """The instance is gone, or its load failed. Returns what nobody holds any more."""
        return sorted(self._used.pop(instance_id, frozenset()) - self.held())

    def held(self) -> set[Digest]:
        return set().union(*self._used.values())
