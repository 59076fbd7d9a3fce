"""Who holds what. A hold lives as long as its holder's process; the node agent ends it."""

from __future__ import annotations

from collections.abc import Iterable

from tessera.domain.ids import Digest


class Holds:
    """Not thread-safe: the store's lock is held around it."""

    def __init__(self) -> None:
        self._by_holder: dict[str, set[Digest]] = {}

    def add(self, holder: str, digests: Iterable[Digest]) -> None:
        wanted = set(digests)
        if wanted:
            self._by_holder.setdefault(holder, set()).update(wanted)

    def drop(self, holder: str, digests: Iterable[Digest] | None) -> set[Digest]:
        """Ends these holds (None: all of the holder's); returns those that were held."""
        held = self._by_holder.get(holder)
        if held is None:
            return set()
        dropped = set(held) if digests is None else held & set(digests)
        held -= dropped
        if not held:
            del self._by_holder[holder]
        return dropped

    def drop_everywhere(self, digest: Digest) -> None:
        for holder in list(self._by_holder):
            self.drop(holder, (digest,))

    def held(self) -> set[Digest]:
        return set().union(*self._by_holder.values())

    def by_holder(self) -> dict[str, frozenset[Digest]]:
        return {holder: frozenset(held) for holder, held in self._by_holder.items()}
