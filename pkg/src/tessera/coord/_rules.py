"""What every implementation of `Coordinator` refuses before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tessera.coord.interface import Compare, Write
from tessera.domain.errors import InvalidInput

MAX_WRITES = 128
"""etcd's own limit of operations in a transaction (`--max-txn-ops`)."""

MAX_VALUE_BYTES = 1 << 20
"""Below etcd's 1.5 MiB for a whole request. Records are far smaller."""

MIN_TTL_S = 2
"""etcd grants no shorter lease with its default election timeout."""


def check_transaction(compares: Sequence[Compare], writes: Sequence[Write]) -> None:
    """Raises: InvalidInput when a transaction has no compare, too many parts, an empty key, a huge value or writes a key twice."""
    if not compares:
        raise InvalidInput("compares", limit="at least one compare is required, so that no write overwrites what it has not seen")
    for field, count in (("compares", len(compares)), ("writes", len(writes))):
        if count > MAX_WRITES:
            raise InvalidInput(field, count, f"at most {MAX_WRITES} in a transaction")
    for compare in compares:
        check_key("compare key", compare.key)
        if compare.revision < 0:
            raise InvalidInput("compare revision", compare.revision, "must be 0 (absent) or a revision")
    seen: set[str] = set()
    for write in writes:
        check_key("write key", write.key)
        if write.key in seen:
            raise InvalidInput("write key", write.key, "is written twice in one transaction")
        seen.add(write.key)
        size = len(getattr(write, "value", b""))
        if size > MAX_VALUE_BYTES:
            raise InvalidInput(f"value of {write.key}", f"{size} bytes", f"at most {MAX_VALUE_BYTES} bytes")


def check_key(field: str, key: str) -> None:
    """Raises: InvalidInput when a key or prefix is empty."""
    if not key:
        raise InvalidInput(field, key, "must not be empty")


def granted_ttl_s(ttl_s: float) -> int:
    """Whole seconds to ask a lease for.

    Raises:
        InvalidInput: when it is not positive or not finite.
    """
    if not math.isfinite(ttl_s) or ttl_s <= 0:
        raise InvalidInput("ttl_s", ttl_s, "must be a positive number of seconds")
    return max(MIN_TTL_S, math.ceil(ttl_s))
