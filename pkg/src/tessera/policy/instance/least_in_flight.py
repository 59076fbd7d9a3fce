"""The instance with the fewest requests in flight; among equals the first."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.policy.instance.base import AnInstance


class LeastInFlight:
    name = "least-in-flight"

    def pick(self, instances: Sequence[AnInstance]) -> AnInstance:
        best = instances[0]
        for instance in instances:
            if instance.in_flight < best.in_flight:
                best = instance
        return best
