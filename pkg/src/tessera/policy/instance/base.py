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
    """`in_flight`: items of requests that this gateway has sent there and that are not answered. `joins`: requests are joined to batches;
    else each is run by itself, its own items together. `latency` None: nobody measured."""

    in_flight: int
    max_batch: int
    joins: bool
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


def completion_ms(instance: Instance, items: int = 1) -> float | None:
    """When a request of so many items that is sent now is expected to be answered, in ms; None where nobody measured.

    Of the items in flight there as many as fit into a batch are executing, half-way through on average; the rest waits in front of this
    request, in full batches, and it joins the last one where it fits. Where requests are not joined, those in front are run one after
    another; they are taken to have one item each, since how many of the items came together is not known.
    """
    latency = instance.latency
    if latency is None:
        return None
    in_flight, most = instance.in_flight, instance.max_batch
    own = items if items < most else most
    own_ms = latency.one_ms if own == 1 else latency.at(own)
    if in_flight <= 0:
        return own_ms
    if not instance.joins:
        return latency.one_ms * (in_flight - 0.5) + own_ms
    if in_flight <= most:
        return latency.at(in_flight) / 2 + own_ms
    full, rest = divmod(in_flight - most, most)
    last_ms = latency.at(rest + own) if rest + own <= most else latency.at(rest) + own_ms
    return latency.at(most) * (0.5 + full) + last_ms
