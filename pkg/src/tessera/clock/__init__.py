"""Time as an argument: `Clock` is the interface, `SystemClock` the world, `VirtualClock` (tessera.testing) the tests'."""

from tessera.clock._clock import Clock, SystemClock

__all__ = ["Clock", "SystemClock"]
