"""What is kept for loads to come goes when nobody has wanted it for long."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from tessera.runtime.housekeeping import KEEP_S, Housekeeping
from tessera.runtime.kept import KeptArtifacts
from tessera.testing import LoopClock, run_virtual


class Bytes:
    """Of an artifact with one file."""

    files = 1
    open = True

    def close(self) -> None:
        self.open = False


def test_what_is_kept_goes_after_its_own_ten_minutes():
    async def main():
        clock, kept = LoopClock(), KeptArtifacts()
        with ThreadPoolExecutor(1) as loader:
            house = Housekeeping(kept, list, loader, clock)
            found = [Bytes() for _ in range(3)]
            for number, blobs in enumerate(found):
                kept.keep(f"artifact-{number}", blobs, clock.monotonic_s())
                house.forget_later()
                await asyncio.sleep(100)
            await asyncio.sleep(KEEP_S - 301)
            assert [blobs.open for blobs in found] == [True, True, True]
            for left in (2, 1, 0):
                await asyncio.sleep(2)
                assert [blobs.open for blobs in found] == [False] * (3 - left) + [True] * left
                await asyncio.sleep(98)
            house.stop()

    run_virtual(main)
