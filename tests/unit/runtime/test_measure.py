"""Rows: how long they are repeated, and several instances at a time."""

from __future__ import annotations

import threading

import pytest

from tessera.clock import SystemClock
from tessera.domain.errors import Internal
from tessera.domain.signature import Signature, TensorSpec
from tessera.runtime.measure import Measurement, RowLimits, measure

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), ())


class Script:
    """A clock that only runs move: each takes what the script says next, the last for ever."""

    def __init__(self, *times_ms: float) -> None:
        self.times_ms = list(times_ms)
        self.now_s = 0.0
        self.runs = 0

    inline = False

    def run(self, inputs):
        self.runs += 1
        if self.runs > 2:  # the first two warm
            self.now_s += (self.times_ms.pop(0) if len(self.times_ms) > 1 else self.times_ms[0]) / 1e3
        return {}

    def close(self) -> None: ...

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None: ...


def row(script: Script, limits: RowLimits) -> Measurement:
    return measure([script], SIGNATURE, 1, limits, script)


def test_a_steady_row_ends_early_but_not_at_once() -> None:
    found = row(Script(2.0), RowLimits(1.0, 5, spread=0.02))
    assert found.repeats == 50, "a tenth of a second at 2 ms each"
    assert found.spread == pytest.approx(0.0, abs=1e-6)


def test_a_restless_row_goes_on_to_its_limit() -> None:
    found = row(Script(*[1.0, 30.0] * 1000), RowLimits(1.0, 5, spread=0.02))
    assert 60 <= found.repeats <= 70
    assert found.spread > 0.02
    few = row(Script(400.0, 800.0), RowLimits(1.0, 5, spread=0.02))
    assert few.repeats == 5, "the fewest count more than the limit"


def test_one_that_calms_down_ends_when_its_spread_is_small() -> None:
    found = row(Script(*[9.0, 11.0] * 1000), RowLimits(100.0, 5, spread=0.005))
    assert found.spread <= 0.005 * 1.01
    assert 990 <= found.repeats <= 1010, "a tenth of the limit"
    assert row(Script(*[5.0, 15.0] * 5000), RowLimits(100.0, 5, spread=0.01)).repeats == pytest.approx(2500, abs=5)


class Meeting:
    """One of several whose first runs end only when all of them run: taking turns would break the barrier."""

    inline = False

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier
        self.runs = 0

    def run(self, inputs):
        self.runs += 1
        if self.runs <= 5:
            self._barrier.wait(10)
        return {}

    def close(self) -> None: ...


def test_instances_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3)
    instances = [Meeting(barrier) for _ in range(3)]
    found = measure(instances, SIGNATURE, 1, RowLimits(0.0, 30), SystemClock())
    assert found.repeats == 30, "what ends after the last that counts ran without its neighbours"
    assert sum(each.runs for each in instances) >= 30 + 2 * 3


def test_a_failure_of_one_ends_all() -> None:
    class Fails:
        inline = False
        runs = 0

        def run(self, inputs):
            self.runs += 1
            if self.runs > 5:
                raise Internal("broken")
            return {}

        def close(self) -> None: ...

    class Fine(Fails):
        def run(self, inputs):
            return {}

    with pytest.raises(Internal, match="broken"):
        measure([Fine(), Fails()], SIGNATURE, 1, RowLimits(60.0, 10**6), SystemClock())
