"""Keep-alive: only what is ready and idle longer than the window is proposed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from tessera.policy.scaling.fixed import FixedKeepAlive
from tessera.policy.scaling.gaps import BIN_S, BINS, MOST_GAPS, GapHistogram
from tessera.policy.scaling.histogram import HistogramKeepAlive
from tessera.policy.view import InstanceView, NodeView

KEY = VariantKey(TrustDomain("default"), ModelName("m"), VersionNumber(1), VariantName("v"))


def node(*instances: tuple[str, InstanceState, float]) -> NodeView:
    views = tuple(InstanceView(InstanceId(name), KEY, Generation(1), state, idle_s) for name, state, idle_s in instances)
    return NodeView(NodeId("n1"), BuildClass("a"), ProfileClass("p"), instances=views)


def test_longer_than_the_window_and_longest_first() -> None:
    ready = InstanceState.READY
    proposals = FixedKeepAlive(600).propose(
        [node(("exactly", ready, 600.0), ("over", ready, 600.1), ("long", ready, 9000.0), ("busy", ready, 0.0))], {}
    )
    assert [item.instance_id for item in proposals] == ["long", "over"]
    assert proposals[0].reason == "idle for 9000 s, keep-alive is 600 s"


@pytest.mark.parametrize("name", sorted(registry.POLICIES))
@pytest.mark.parametrize("state", [state for state in InstanceState if state is not InstanceState.READY])
def test_only_ready_instances_are_proposed(state: InstanceState, name: str) -> None:
    assert registry.make(name, 1.0).propose([node(("i", state, 99.0))], {}) == ()


def test_an_unknown_policy_is_refused_by_name() -> None:
    assert registry.make("fixed", 1.0).name == "fixed"
    with pytest.raises(InvalidInput, match="keep-alive policy 'never': one of fixed, histogram"):
        registry.make("never", 1.0)


def gaps(*lengths_s: float) -> GapHistogram:
    found = GapHistogram()
    for length_s in lengths_s:
        found = found.add(length_s)
    return found


@pytest.mark.parametrize(
    ("seen", "window_s", "reason"),
    [
        (gaps(*[300.0] * 9), 600.0, " (fixed: 9 gaps seen, 10 are needed)"),
        (gaps(*[300.0] * 10), 396.0, " (99% of 10 gaps were shorter)"),
        (gaps(*[10.0] * 200, 7000.0), 66.0, " (99% of 201 gaps were shorter)"),
        (gaps(*[10.0] * 50, *[7000.0] * 2), 7722.0, " (99% of 52 gaps were shorter)"),
        (gaps(*[300.0] * 10, *[20000.0] * 11), 600.0, " (fixed: 11 of 21 gaps are longer than the histogram)"),
        (gaps(*[BIN_S * at for at in range(BINS)]), 600.0, " (fixed: no gap is typical: variation 0.0)"),
    ],
    ids=["few", "a timer", "one straggler", "two stragglers", "beyond", "even"],
)
def test_the_window_is_how_long_a_variant_is_usually_left_alone(seen: GapHistogram, window_s: float, reason: str) -> None:
    window = HistogramKeepAlive(600.0).window(seen)
    assert (pytest.approx(window.keep_alive_s), window.reason) == (window_s, reason)


def test_each_variant_has_its_own_window_and_an_unknown_one_the_fixed() -> None:
    ready = InstanceState.READY
    view = node(("timer", ready, 400.0), ("short", ready, 390.0))
    policy = HistogramKeepAlive(600.0)
    assert [item.instance_id for item in policy.propose([view], {KEY: gaps(*[300.0] * 10)})] == ["timer"]
    assert policy.propose([view], {}) == ()
    (proposal,) = policy.propose([node(("timer", ready, 601.0))], {})
    assert proposal.reason == "idle for 601 s, keep-alive is 600 s (fixed: 0 gaps seen, 10 are needed)"


@given(st.lists(st.floats(0, 5 * 3600.0), max_size=60), st.floats(0.01, 1.0))
def test_a_histogram_counts_every_gap_and_its_percentile_covers_its_share(lengths_s: list[float], share: float) -> None:
    found = gaps(*lengths_s)
    inside = [length_s for length_s in lengths_s if length_s < BINS * BIN_S]
    assert (found.within, found.beyond) == (len(inside), len(lengths_s) - len(inside))
    edge_s = found.longest_of(share)
    assert sum(length_s < edge_s for length_s in inside) >= share * len(inside) - 1e-9
    assert found == gaps(*sorted(lengths_s, reverse=True))


def test_old_habits_fade() -> None:
    found = gaps(*[300.0] * (MOST_GAPS - 1), 9000.0)
    assert (found.within, found.longest_of(1.0)) == ((MOST_GAPS - 1) // 2, 360.0), "halved, and the single one is gone"
    with pytest.raises(ValueError, match="gap_s -1"):
        gaps(-1.0)
