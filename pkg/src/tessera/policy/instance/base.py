"""What an instance policy sees: queues as this gateway knows them, and what a batch takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Latency(Protocol):
    one_ms: float
    """At batch 1."""

    def at(self, batch: int) -> float:
        """Milliseconds of a batch."""
        ...


class Instance(Protocol):
    """`in_flight`: requests that this gateway has sent there and that are not answered. `latency` None: nobody measured."""

    in_flight: int
    max_batch: int
    latency: Latency | None


AnInstance = TypeVar("AnInstance", bound=Instance)

Draw = Callable[[], float]
"""A number from 0 up to 1 without it, each as likely as the others."""


class InstancePolicy(Protocol):
    @property
    def name(self) -> str: ...

    def pick(self, instances: Sequence[AnInstance]) -> AnInstance:
        """One of them; there is at least one."""
        ...


def completion_ms(instance: Instance) -> float | None:
    """When a request that is sent now is expected to be answered, in ms; None where nobody measured.

    Of the requests in flight there as many as fit into a batch are executing, half-way through on average; the rest waits in front of this
    one, in full batches, and it joins the last one.
    """
    latency = instance.latency
    if latency is None:
        return None
    in_flight = instance.in_flight
    if in_flight <= 0:
        return latency.one_ms
    most = instance.max_batch
    if in_flight <= most:
        return latency.at(in_flight) / 2 + latency.one_ms
    full, rest = divmod(in_flight - most, most)
    return latency.at(most) * (0.5 + full) + latency.at(rest + 1)
