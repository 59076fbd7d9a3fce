from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tessera.coord._session import KeptSession
from tessera.domain.errors import Unavailable
from tessera.testing import VirtualClock, settle

TTL_S = 9.0


class Server:
    """Renews as a test says: `answers` is what each renewal gives (an error is raised), then the whole time again and again."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.answers: list[float | Exception] = []
        self.default: float | Exception = TTL_S
        self.takes_s = 0.0
        self.renewed_at_s: list[float] = []
        self.revoked = 0
        self.revoke_error: Exception | None = None
        self.forgotten: list[KeptSession] = []

    async def renew(self, timeout_s: float) -> float:
        assert timeout_s > 0
        self.renewed_at_s.append(self.clock.monotonic_s())
        await self.clock.sleep(self.takes_s)
        answer = self.answers.pop(0) if self.answers else self.default
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def revoke(self) -> None:
        self.revoked += 1
        if self.revoke_error:
            raise self.revoke_error


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(monotonic_s=0.0)


@pytest.fixture
def server(clock: VirtualClock) -> Server:
    return Server(clock)


@pytest.fixture
async def session(clock: VirtualClock, server: Server) -> AsyncIterator[KeptSession]:
    session = KeptSession(0xABC, TTL_S, clock=clock, asked_s=0.0, renew=server.renew, revoke=server.revoke, forget=server.forgotten.append)
    yield session
    await session.stop()


async def test_it_renews_three_times_per_lease(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    await clock.advance(30.0)
    assert server.renewed_at_s == [3.0 * n for n in range(1, 11)]
    assert not session.lost.is_set()


async def test_it_is_lost_exactly_when_its_time_is_over(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    await clock.advance(3.5)
    server.default = Unavailable("away")
    await clock.advance(3.0 + TTL_S - 3.5 - 1e-9)
    assert not session.lost.is_set()
    await clock.advance(1e-9)
    assert session.lost.is_set()
    tried = len(server.renewed_at_s)
    assert tried > 10, "renewals are tried again quickly while etcd is away"
    await clock.advance(100.0)
    assert len(server.renewed_at_s) == tried


async def test_one_renewal_in_time_is_enough(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    server.answers = [Unavailable("away")] * 20
    await clock.advance(60.0)
    assert not session.lost.is_set()


async def test_the_time_counts_from_before_the_renewal_was_sent(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    server.takes_s = 2.0
    await clock.advance(5.5)  # sent at 3, answered at 5: the lease ends at 12
    server.default = Unavailable("away")
    server.takes_s = 0.0
    await clock.advance(6.49)
    assert not session.lost.is_set()
    await clock.advance(0.02)
    assert session.lost.is_set()


async def test_the_server_may_grant_less_time_but_not_more(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    server.answers = [4.0]
    await clock.advance(3.5)
    server.default = Unavailable("away")
    await clock.advance(3.4)
    assert not session.lost.is_set()
    await clock.advance(0.2)
    assert session.lost.is_set()


async def test_a_lease_that_is_gone_is_lost_at_once(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    server.answers = [0.0]
    await clock.advance(3.0)
    assert session.lost.is_set()


async def test_a_process_that_was_stopped_too_long_has_lost_it(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    clock.move(TTL_S + 1.0)  # the timer of 3 s fires only now
    await settle()
    assert session.lost.is_set()
    assert server.renewed_at_s == []


async def test_a_renewal_that_was_answered_too_late_does_not_bring_it_back(
    clock: VirtualClock, server: Server, session: KeptSession
) -> None:
    server.takes_s = 7.0  # etcd was away and has kept the lease, but others may have read our clock as "over"
    await clock.advance(10.5)
    assert session.lost.is_set()


async def test_a_fault_in_the_renewals_loses_it(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    server.answers = [ValueError("a fault")]
    await clock.advance(3.0)
    assert session.lost.is_set()


async def test_closing_revokes_once_and_ends_the_renewals(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    await session.close()
    await session.close()
    await clock.advance(30.0)
    assert (server.revoked, server.renewed_at_s, server.forgotten) == (1, [], [session])
    assert not session.lost.is_set()


async def test_a_lost_session_still_takes_its_keys_away(clock: VirtualClock, server: Server, session: KeptSession) -> None:
    server.default = Unavailable("away")
    await clock.advance(TTL_S)
    assert session.lost.is_set()
    await session.close()
    assert server.revoked == 1


async def test_closing_without_a_server_is_no_error(server: Server, session: KeptSession) -> None:
    server.revoke_error = Unavailable("away")
    await session.close()
    assert server.revoked == 1
