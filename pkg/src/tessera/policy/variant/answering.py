"""Which version a model's name alone stands for: one rule for requests, batch jobs and plans."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from tessera.domain.ids import BuildClass, VersionNumber
from tessera.domain.records import ModelRecord, VariantRecord
from tessera.policy.variant.permitted import is_plain, never


class Host(Protocol):
    """A node, or a class of nodes that are alike."""

    @property
    def build_class(self) -> BuildClass: ...

    @property
    def flavours(self) -> tuple[str, ...]: ...


def can_run(record: VariantRecord, host: Host) -> bool:
    return (record.build_class is None or record.build_class == host.build_class) and record.flavour in host.flavours


def answering_version(
    model: ModelRecord, known: Collection[VersionNumber], variants: Iterable[VariantRecord], hosts: Collection[Host]
) -> VersionNumber:
    """The newest version whose record is here and that has a variant to answer with, on a node that is there if any has. Without one the
    latest, which errors name.

    A version is announced before it is built, and its records come one by one: until it can answer, the one before it goes on.

    Args:
        known: the versions whose records are here.
        variants: the model's, in any order; the newest first is the quickest.
        hosts: the nodes that are there.
    """
    best = (False, 0)
    for record in variants:
        number = record.key.version
        if (True, number) > best and number <= model.latest and number in known and _answers(record, model):
            best = max(best, (any(can_run(record, host) for host in hosts), number))
    return VersionNumber(best[1]) if best[1] else model.latest


def _answers(record: VariantRecord, model: ModelRecord) -> bool:
    """Whether it may answer who names no variant and asks for no accuracy."""
    return not never(record) and not record.withheld and is_plain(record, model)
