"""Keep-alive: only what is ready and idle longer than the window is proposed."""

from __future__ import annotations

import pytest

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import (
    BuildClass,
    Generation,
    InstanceId,
    ModelName,
    NodeId,
    ProfileClass,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
)
from tessera.domain.instance import InstanceState
from tessera.policy.scaling import registry
from tessera.policy.scaling.idle_keep_alive import IdleKeepAlive
from tessera.policy.view import InstanceView, NodeView

KEY = VariantKey(TrustDomain("default"), ModelName("m"), VersionNumber(1), VariantName("v"))


def node(*instances: tuple[str, InstanceState, float]) -> NodeView:
    views = tuple(InstanceView(InstanceId(name), KEY, Generation(1), state, idle_s) for name, state, idle_s in instances)
    return NodeView(NodeId("n1"), BuildClass("a"), ProfileClass("p"), instances=views)


def test_longer_than_the_window_and_longest_first() -> None:
    ready = InstanceState.READY
    proposals = IdleKeepAlive(600).propose(
        [node(("exactly", ready, 600.0), ("over", ready, 600.1), ("long", ready, 9000.0), ("busy", ready, 0.0))]
    )
    assert [item.instance_id for item in proposals] == ["long", "over"]
    assert proposals[0].reason == "idle for 9000 s, keep-alive is 600 s"


@pytest.mark.parametrize("state", [state for state in InstanceState if state is not InstanceState.READY])
def test_only_ready_instances_are_proposed(state: InstanceState) -> None:
    assert IdleKeepAlive(1).propose([node(("i", state, 99.0))]) == ()


def test_an_unknown_policy_is_refused_by_name() -> None:
    assert registry.make("idle-keep-alive", 1.0).name == "idle-keep-alive"
    with pytest.raises(InvalidInput, match="keep-alive policy 'never': one of idle-keep-alive"):
        registry.make("never", 1.0)
