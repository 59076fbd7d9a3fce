"""Variants that crash their runtime are slowed down and kept apart; others are unharmed."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.domain.errors import Unavailable
from tessera.node_agent.core.poison import BackOff, PoisonLedger

BACK_OFF = BackOff(first_s=1.0, longest_s=8.0, forgive_s=100.0)


def test_a_crash_at_load_isolates_and_backs_off_twice_as_long_each_time(make: Any) -> None:
    ledger, bad = PoisonLedger(BACK_OFF), make.variant("bad")
    now = 0.0
    for wait_s in (1.0, 2.0, 4.0, 8.0, 8.0):
        ledger.runtime_lost([bad], [], isolated=False, now_s=now)
        with pytest.raises(Unavailable, match=rf"not tried again for {wait_s:.1f} s"):
            ledger.isolated(bad, now)
        with pytest.raises(Unavailable):
            ledger.isolated(bad, now + wait_s - 0.01)
        assert ledger.isolated(bad, now + wait_s)
        now += wait_s


def test_the_others_in_that_runtime_are_unharmed(make: Any) -> None:
    ledger, bad, good = PoisonLedger(BACK_OFF), make.variant("bad"), make.variant("good")
    ledger.runtime_lost([bad], [good], isolated=False, now_s=0.0)
    assert not ledger.isolated(good, 0.0)


def test_one_crash_while_serving_changes_nothing_the_second_isolates(make: Any) -> None:
    ledger, one, two = PoisonLedger(BACK_OFF), make.variant("one"), make.variant("two")
    ledger.runtime_lost([], [one, two, two], isolated=False, now_s=0.0)
    assert not ledger.isolated(one, 0.0)
    ledger.runtime_lost([], [two], isolated=False, now_s=1.0)
    assert not ledger.isolated(one, 1.0)
    assert ledger.isolated(two, 1.0)  # and no back-off: nothing says it was this one


def test_a_crash_in_a_runtime_of_its_own_is_its_own(make: Any) -> None:
    ledger, bad = PoisonLedger(BACK_OFF), make.variant("bad")
    ledger.runtime_lost([], [bad], isolated=True, now_s=0.0)
    with pytest.raises(Unavailable):
        ledger.isolated(bad, 0.5)
    assert ledger.isolated(bad, 1.0)


def test_it_is_forgiven_after_a_while(make: Any) -> None:
    ledger, bad = PoisonLedger(BACK_OFF), make.variant("bad")
    ledger.runtime_lost([bad], [], isolated=False, now_s=0.0)
    assert ledger.isolated(bad, 99.0)
    assert not ledger.isolated(bad, 100.0)


def test_the_back_off_of_what_never_stops_crashing_stays_the_longest(make: Any) -> None:
    ledger, bad = PoisonLedger(BACK_OFF), make.variant("bad")
    now = 0.0
    for _ in range(2000):
        ledger.runtime_lost([bad], [], isolated=False, now_s=now)
        now += BACK_OFF.longest_s
    with pytest.raises(Unavailable, match=r"crashed its runtime 2000 times; not tried again for 8\.0 s"):
        ledger.isolated(bad, now - BACK_OFF.longest_s)
    assert ledger.isolated(bad, now)
