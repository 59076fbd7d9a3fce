"""Load, autoscaling and node policies from another package: installed and named in the scheduler's settings, they decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import InstanceId, NodeId, ProfileClass
from tessera.domain.records import LoadState
from tessera.policy.autoscaling import registry as autoscaling
from tessera.policy.autoscaling.base import Kind, ModelLoad, Running
from tessera.policy.load import registry as load
from tessera.policy.load.base import Expected, Observation
from tessera.policy.nodes import registry as nodes
from tessera.policy.nodes.base import NodeUse, PoolState
from tessera.testing.builders import a_variant_key

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "policy-spare"
KIND = Kind(a_variant_key(), ProfileClass("p"), 100.0, 1.0, 1.0, 0.1)


def test_it_is_short() -> None:
    assert sum(len(path.read_text().splitlines()) for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml")) < 60


def seen(items_per_s: float) -> Observation:
    return Observation(served=1, in_flight=1, requests_per_s=items_per_s, items_per_s=items_per_s, run_ms=1.0, batch=1.0)


def offered(items_per_s: float, instances: int, room: float = 8.0) -> ModelLoad:
    running = tuple(Running(InstanceId(f"i-{number}"), NodeId("n1"), KIND, 100.0) for number in range(instances))
    return ModelLoad(items_per_s, running, (KIND,), {KIND.profile_class: room})


def test_installing_the_package_is_all(install_example: Callable[[str], Path]) -> None:
    for family, words in ((load, "load policy"), (autoscaling, "autoscaling policy"), (nodes, "node policy")):
        with pytest.raises(InvalidInput, match=f"{words} 'spare'"):
            family.make("spare")
    install_example("policy-spare")

    judge, expected = load.make("spare"), Expected(0.0, 1.0, 100.0)
    calm = judge.step(None, seen(40.0), expected, 1.0)
    busy = judge.step(calm, seen(60.0), expected, 2.0)
    still = judge.step(busy, seen(70.0), expected, 3.0)
    assert [found.state for found in (calm, busy, still)] == [LoadState.ACTIVE, LoadState.OVERLOADED, LoadState.OVERLOADED]
    assert (busy.since_s, still.since_s) == (2.0, 2.0)
    assert judge.step(still, seen(900.0), None, 4.0).state is LoadState.ACTIVE, "nothing is judged by a guess"

    scaler = autoscaling.make("spare")
    assert scaler.plan(offered(150.0, 2)).add == ((KIND, 1),), "two are needed, and a spare"
    assert scaler.plan(offered(150.0, 2, room=0.0)).empty
    assert scaler.plan(offered(150.0, 3)).empty
    assert (scaler.plan(offered(50.0, 3)).remove, scaler.plan(offered(50.0, 3)).patience_s) == (("i-0",), 10.0)
    assert scaler.plan(offered(0.0, 1)).empty
    assert scaler.plan(offered(0.0, 0)).empty

    pool, busy_node, idle_node = nodes.make("spare"), NodeUse(NodeId("n1"), 0.5, 1), NodeUse(NodeId("extra-0"), 0.0, removable=True)
    second = NodeUse(NodeId("extra-1"), 0.0, removable=True)
    assert pool.step(PoolState(), [busy_node]).add
    kept = pool.step(PoolState(), [busy_node, idle_node])
    assert (kept.add, kept.remove) == (False, ())
    assert pool.step(PoolState(), [second, busy_node, idle_node]).remove == ("extra-1",)
    assert not pool.step(PoolState(), []).add
