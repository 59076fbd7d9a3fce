"""Real etcd, real processes: kill -9 of the leader, an etcd that is away, starts that are merged."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from tessera.coord import keys
from tessera.domain.errors import Unavailable

pytestmark = pytest.mark.slow


async def test_a_killed_leader_is_replaced_and_its_instance_is_adopted(cluster: Any) -> None:
    first = await cluster.leader()
    standby = next(address for address in cluster.addresses if address != first)
    answer = await cluster.ask(first)
    record = (await cluster.recorded(1))[0]
    assert (record.instance_id, record.generation) == (answer.instance_id, answer.generation)
    with pytest.raises(Unavailable, match=rf"is a standby; the leader is {first}"):
        await cluster.ask(standby)

    cluster.kill(first)
    assert await cluster.leader(other_than=first) == standby

    warm = await cluster.ask(standby)
    assert (warm.start_path, warm.instance_id) == ("warm", answer.instance_id)
    other = await cluster.ask(standby, "aten-other")
    assert other.start_path == "bind"
    older, newer = cluster.agent.terms
    assert older.is_older_than(newer), "the agent was told a newer term"
    assert len(await cluster.recorded(2)) == 2

    cluster.start(first)
    await cluster.answering(first)
    assert await cluster.leader() == standby, "who comes back is a standby"


async def test_a_graceful_end_hands_over_and_leaves_nothing(cluster: Any) -> None:
    first = await cluster.leader()
    assert cluster.kill(first, signal.SIGTERM) == 0
    second = await cluster.leader(other_than=first)
    assert cluster.kill(second, signal.SIGTERM) == 0

    for prefix in (keys.SCHEDULER_ELECTION, keys.SERVICES):
        assert (await cluster.coordinator.list(prefix)).items == ()


async def test_requests_of_several_gateways_share_one_start(cluster: Any) -> None:
    first = await cluster.leader()
    cluster.agent.load_s = 0.5
    answers = await asyncio.gather(*(cluster.ask(first) for _ in range(16)))
    assert len({answer.instance_id for answer in answers}) == 1
    assert len(cluster.agent.requests) == 1


async def test_starts_go_on_while_etcd_is_away_and_the_record_follows(cluster: Any) -> None:
    first = await cluster.leader()
    await cluster.ask(first)
    await cluster.recorded(1)
    cluster.etcd.pause()
    try:
        # Longer than the lease: the session is lost, the term goes on.
        await asyncio.sleep(3.0)
        answer = await cluster.ask(first, "aten-other")
        assert answer.start_path == "bind"
        again = await cluster.ask(first, "aten-other")
        assert (again.start_path, again.instance_id) == ("warm", answer.instance_id)
    finally:
        cluster.etcd.resume()
    records = await cluster.recorded(2)
    assert answer.instance_id in {record.instance_id for record in records}
    leader = await cluster.leader()
    assert (await cluster.ask(leader, "aten-other")).instance_id == answer.instance_id, "nothing was started twice"
    assert len(cluster.agent.requests) == 2


@pytest.mark.etcd
async def test_an_etcd_that_is_killed_and_restarted(cluster: Any) -> None:
    first = await cluster.leader()
    before = await cluster.ask(first)
    await cluster.recorded(1)
    await cluster.etcd.kill()
    during = await cluster.ask(first, "aten-other")
    await cluster.etcd.start()
    records = await cluster.recorded(2)
    assert {record.instance_id for record in records} == {before.instance_id, during.instance_id}
    leader = await cluster.leader()
    assert (await cluster.ask(leader)).instance_id == before.instance_id
