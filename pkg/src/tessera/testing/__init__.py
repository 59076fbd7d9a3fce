"""What tests use in place of the world: clocks, loops, fakes, builders. Shipped, so that everyone can test against Tessera's
interfaces; imported by tests only (`builders` and `coord` by their own names).
"""

from tessera.testing._clock import VirtualClock, settle
from tessera.testing._loop import LoopClock, VirtualTimeLoop, run_virtual

__all__ = ["LoopClock", "VirtualClock", "VirtualTimeLoop", "run_virtual", "settle"]
