"""What the pool of nodes relies on, whoever provides them."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.domain.ids import NodeId

pytestmark = pytest.mark.timeout(300)


async def test_nodes_register_and_any_scheduler_finds_them_and_takes_them_away(pool: Any) -> None:
    provider, other = pool.provider(), pool.provider()
    assert await provider.nodes() == frozenset()
    assert [await provider.add(), await provider.add()] == ["extra-0", "extra-1"]
    await pool.until(other, "extra-0", "extra-1")
    await other.remove(NodeId("extra-0"))
    assert await provider.nodes() == {"extra-1"}
    await provider.remove(NodeId("extra-0"))
    await provider.remove(NodeId("extra-1"))
    assert await other.nodes() == frozenset()
    await pool.until_nothing_is_left()
    await pool.until(other)


async def test_a_killed_node_is_none_and_its_name_is_given_again(pool: Any) -> None:
    provider, other = pool.provider(), pool.provider()
    await provider.add()
    pool.world.kill(NodeId("extra-0"))
    await pool.until(provider)
    assert await other.add() == "extra-0"
    await pool.until(provider, "extra-0")
    await other.remove(NodeId("extra-0"))
    await pool.until_nothing_is_left()
