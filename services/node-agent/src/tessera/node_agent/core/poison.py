"""Variants that crash their runtime: kept apart, and slowed down, so that the others are unharmed.

A crash while a variant loads is that variant's. A crash while serving cannot be told apart between the instances of one runtime: each
gets a mark, and with the second mark a runtime of its own; a crash in a runtime of its own is its own again. Marks are forgiven after a
while without a crash.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.errors import Unavailable
from tessera.domain.ids import VariantKey

ISOLATE_AT_MARKS = 2
MOST_DOUBLINGS = 32


@dataclass(frozen=True, slots=True)
class BackOff:
    first_s: float = 0.5
    longest_s: float = 60.0
    forgive_s: float = 600.0


@dataclass(frozen=True, slots=True)
class _Case:
    marks: int
    crashes: int
    last_s: float
    not_before_s: float


class PoisonLedger:
    """What each variant has done to its runtimes."""

    def __init__(self, back_off: BackOff) -> None:
        self._back_off = back_off
        self._cases: dict[VariantKey, _Case] = {}

    def runtime_lost(self, loading: Iterable[VariantKey], serving: Iterable[VariantKey], isolated: bool, now_s: float) -> None:
        """A runtime died unasked. `loading` were just being loaded, `serving` were ready in it; isolated = it held one variant only."""
        blamed = set(loading)
        if not blamed and isolated:
            blamed = set(serving)
        for variant in blamed:
            case = self._case(variant, now_s)
            crashes = case.crashes + 1
            wait_s = min(self._back_off.longest_s, self._back_off.first_s * 2.0 ** min(crashes - 1, MOST_DOUBLINGS))
            self._cases[variant] = _Case(max(case.marks, ISOLATE_AT_MARKS), crashes, now_s, now_s + wait_s)
        if not blamed:
            for variant in set(serving):
                case = self._case(variant, now_s)
                self._cases[variant] = _Case(case.marks + 1, case.crashes, now_s, case.not_before_s)

    def isolated(self, variant: VariantKey, now_s: float) -> bool:
        """True: only in a runtime of its own.

        Raises:
            Unavailable: its back-off is not over; says how long it lasts.
        """
        case = self._case(variant, now_s)
        if now_s < case.not_before_s:
            left_s = case.not_before_s - now_s
            raise Unavailable(f"variant {variant} crashed its runtime {case.crashes} times; not tried again for {left_s:.1f} s")
        return case.marks >= ISOLATE_AT_MARKS

    def _case(self, variant: VariantKey, now_s: float) -> _Case:
        case = self._cases.get(variant)
        if case is not None and now_s - case.last_s >= self._back_off.forgive_s:
            del self._cases[variant]
            case = None
        return case or _Case(0, 0, now_s, now_s)
