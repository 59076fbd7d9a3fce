"""One chunk's way through the gateway, in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tessera.domain.errors import NotFound, TesseraError, TooLarge, Unavailable
from tessera.profiler.batch.core.rows import Chunk
from tessera.profiler.batch.loops.sending import Sender
from tessera.testing import LoopClock, run_virtual
from tessera.testing.builders import a_batch


class Slow:
    """Takes `takes_s` for each request; more than `most` rows are too many."""

    def __init__(self, clock: LoopClock, takes_s: float = 0.0, most: int = 100, fails: list[TesseraError] | None = None) -> None:
        self.clock, self.takes_s, self.most, self.fails = clock, takes_s, most, fails or []
        self.at_s: list[float] = []
        self.rows: list[int] = []

    async def infer(self, _domain: Any, _model: Any, inputs: Mapping[str, Any], _objectives: Any, _budget_s: float) -> Mapping[str, Any]:
        self.at_s.append(self.clock.monotonic_s())
        self.rows.append(len(inputs["x"]))
        await self.clock.sleep(self.takes_s)
        if self.fails:
            raise self.fails.pop(0)
        if len(inputs["x"]) > self.most:
            raise TooLarge("more than a message holds")
        return {"y": inputs["x"] * 2}

    async def close(self) -> None: ...


async def passed() -> None: ...


def a_chunk(rows: int) -> Chunk:
    return Chunk(0, rows, {"x": np.arange(rows)})


def test_requests_take_their_share_of_the_time() -> None:
    async def main() -> None:
        clock = LoopClock()
        slow = Slow(clock, takes_s=0.4)
        sender = Sender(clock, slow, passed, 60.0, 60.0, share=0.8)
        for _ in range(3):
            await sender.answer(a_batch(), True, a_chunk(1))
        assert np.diff(slow.at_s) == pytest.approx([0.5, 0.5])

    run_virtual(main)


def test_what_is_too_large_is_halved_and_comes_in_order() -> None:
    async def main() -> None:
        clock = LoopClock()
        slow = Slow(clock, most=2)
        segments, errors = await Sender(clock, slow, passed, 60.0, 60.0).answer(a_batch(), True, a_chunk(5))
        assert slow.rows == [5, 2, 3, 1, 2]
        assert errors == []
        assert [(each.first, each.rows) for each in segments] == [(0, 2), (2, 1), (3, 2)]
        assert np.concatenate([each.outputs["y"] for each in segments]).tolist() == [0, 2, 4, 6, 8]

    run_virtual(main)


def test_pauses_between_tries_grow_and_have_an_end() -> None:
    async def main() -> None:
        clock = LoopClock()
        slow = Slow(clock, fails=[Unavailable("away") for _ in range(99)])
        with pytest.raises(Unavailable, match=r"the request for rows 0 to 0 failed for \d+ s, at last: away"):
            await Sender(clock, slow, passed, 60.0, 100.0).answer(a_batch(), True, a_chunk(1))
        assert np.diff(slow.at_s) == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])

    run_virtual(main)


def test_what_is_not_about_the_rows_is_not_tried_on_each_of_them() -> None:
    async def main() -> None:
        clock = LoopClock()
        slow = Slow(clock, fails=[NotFound("model gone")])
        with pytest.raises(NotFound, match="model gone"):
            await Sender(clock, slow, passed, 60.0, 60.0).answer(a_batch(), True, a_chunk(8))
        assert slow.rows == [8]

    run_virtual(main)
