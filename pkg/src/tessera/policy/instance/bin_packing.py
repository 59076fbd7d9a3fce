"""The fullest instance that has room, so that the others run empty and can end (INFaaS: requests are bin-packed online).

Room: fewer requests in flight than a batch takes, since the next batch serves them all; none in flight where requests are not joined. Where
nobody has room, the one with the fewest.
Ties end in the order in which they came to be.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera.policy.instance.base import AnInstance


class BinPacking:
    name = "bin-packing"

    def pick(self, instances: Sequence[AnInstance]) -> AnInstance:
        fullest = least = None
        for instance in instances:
            in_flight = instance.in_flight
            if in_flight < (instance.max_batch if instance.joins else 1) and (fullest is None or in_flight > fullest.in_flight):
                fullest = instance
            if least is None or in_flight < least.in_flight:
                least = instance
        chosen = fullest or least
        assert chosen is not None
        return chosen
