"""What an instance's row says about its bytes: how far they are, and where they came from."""

from __future__ import annotations

import asyncio

from tessera.clock import Clock
from tessera.domain.ids import InstanceId
from tessera.domain.instance import InstanceState
from tessera.node_agent.core.table import InstanceTable
from tessera.repository.fetch import Fetched

NOTE_S = 0.2
TELL_S = 1.0


class FetchProgress:
    """From the threads that fetch to the loop that tells: noted a few times a second, a line of the story once a second, however small
    the parts. Made on the loop; called, as a `tessera.repository.fetch.Progress`, in other threads, one call at a time."""

    def __init__(self, table: InstanceTable, instance_id: InstanceId, clock: Clock) -> None:
        self._table = table
        self._instance_id = instance_id
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._told_s = self._noted_s = clock.monotonic_s()

    def __call__(self, done: int, total: int) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._noted_s < NOTE_S:
            return
        self._noted_s = now_s
        try:
            self._loop.call_soon_threadsafe(self._note, done, total, now_s)
        except RuntimeError:
            pass  # the loop has ended, and with it whoever wanted to know

    def _note(self, done: int, total: int, now_s: float) -> None:
        instance = self._table.find(self._instance_id)
        if instance is None or instance.state is not InstanceState.FETCHING:
            return
        self._table.note(self._instance_id, fetch_done_bytes=done, fetch_total_bytes=total)
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._table.tell(self._instance_id, now_s, f"{done} of {total} bytes fetched")


def note_fetched(table: InstanceTable, instance_id: InstanceId, fetched: Fetched, now_s: float, made_room: bool) -> None:
    """All of it is here. `made_room`: it had to wait for that."""
    timed_bytes = 0 if made_room or fetched.waited else fetched.bytes_fetched
    table.note(instance_id, fetched=fetched.bytes_fetched > 0, fetched_bytes=timed_bytes, fetched_from_peers_bytes=fetched.bytes_from_peers)
    table.tell(instance_id, now_s, f"{fetched.bytes_fetched} bytes fetched, {fetched.bytes_from_peers} of them from other nodes")
