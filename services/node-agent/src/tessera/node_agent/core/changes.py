"""What to tell the scheduler: everything first, then what changed since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.ids import Digest


@dataclass(frozen=True, slots=True)
class DigestChange:
    """`full`: `added` is the whole store."""

    full: bool
    added: tuple[Digest, ...]
    removed: tuple[Digest, ...]


class DigestLedger:
    """What the other side of one stream knows of one store. A new stream begins with a new ledger."""

    def __init__(self) -> None:
        self._told: frozenset[Digest] | None = None

    def change_to(self, digests: Iterable[Digest]) -> DigestChange:
        """The change from what was told last to `digests`; takes it as told."""
        now = frozenset(digests)
        told, self._told = self._told, now
        if told is None:
            return DigestChange(True, tuple(sorted(now)), ())
        return DigestChange(False, tuple(sorted(now - told)), tuple(sorted(told - now)))
