"""For machines that are there anyway: overload is half of the peak, and one instance and one node more than needed are ready."""

from collections.abc import Sequence

from tessera.domain.records import LoadState
from tessera.policy.autoscaling.base import NOTHING, ModelLoad, ScalePlan, instances_needed, least_useful, patience_s
from tessera.policy.load.base import Expected, Load, Observation, offered_items_per_s
from tessera.policy.nodes.base import NodeUse, PoolPlan, PoolState


class SpareLoad:
    name = "spare"

    def step(self, previous: Load | None, seen: Observation, expected: Expected | None, now_s: float) -> Load:
        offered = offered_items_per_s(previous, seen, now_s)
        state = LoadState.OVERLOADED if expected and offered > expected.peak_items_per_s / 2 else LoadState.ACTIVE
        since_s = previous.since_s if previous and previous.state is state else now_s
        return Load(state, since_s, now_s, seen, f"{offered:.3g} items/s offered", offered_items_per_s=offered)


class SpareAutoscaling:
    name, slow = "spare", False

    def plan(self, load: ModelLoad) -> ScalePlan:
        if not load.running:
            return NOTHING
        first = least_useful(load.running)[0]
        missing = instances_needed(load.needed_items_per_s, first.kind.items_per_s) + 1 - len(load.running)
        if missing < 0:
            return ScalePlan(remove=(first.instance_id,), patience_s=patience_s([first]))
        room = min(missing, load.fits(first.kind))
        return ScalePlan(((first.kind, room),), reason="spare: one more than needed") if room else NOTHING


class SpareNodes:
    name = "spare"

    def step(self, state: PoolState, nodes: Sequence[NodeUse]) -> PoolPlan:
        idle = sorted(node.node_id for node in nodes if not node.instances)
        free = sorted((node.node_id for node in nodes if node.removable and node.node_id in idle), reverse=True)
        return PoolPlan(state, bool(nodes) and not idle, tuple(free[: max(0, len(idle) - 1)]), f"spare: {len(idle)} nodes are idle")
