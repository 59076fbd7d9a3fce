"""What an alias names, and what it named before (docs/states/alias.md)."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import ModelName, VersionNumber
from tessera.domain.records import AliasRecord, AliasStep

MOST_STEPS = 16
"""Of what an alias named before; the oldest are forgotten. A lab goes back one or two steps, and the record stays a small fact."""

Place = tuple[ModelName, VersionNumber]


def place(record: AliasRecord, answering: VersionNumber) -> Place:
    """The version that an alias stands for while `answering` is the one of its model that answers for the name."""
    return record.model, record.version or answering


def moved(found: AliasRecord | None, answering: VersionNumber, named: AliasRecord) -> AliasRecord:
    """`found` once it names what `named` does; `answering` of the model that it stood for until now. The version that it leaves is
    remembered by its number, also where it followed its model."""
    if found is None:
        return named
    if (found.model, found.version) == (named.model, named.version):
        return found
    left = place(found, answering)
    if left == (named.model, named.version):
        return replace(named, before=found.before)
    step = AliasStep(*left, found.since_unix_s, found.reason)
    return replace(named, before=(*found.before, step)[-MOST_STEPS:])


def gone_back(found: AliasRecord, answering: VersionNumber, there: Set[Place], now_unix_s: float) -> AliasRecord:
    """The alias once it names again what it named before; steps whose version is not `there` any more are passed over.

    Raises:
        FailedPrecondition: nothing is left to go back to.
    """
    left = place(found, answering)
    reached = [at for at, step in enumerate(found.before) if (step.model, step.version) in there - {left}]
    if not reached:
        known = ", ".join(f"{step.model}@{step.version}" for step in found.before)
        why = f"of what it named before ({known}) nothing else is there" if known else "it named nothing before"
        raise FailedPrecondition(f"alias {found.alias!r} has nothing to go back to from {left[0]}@{left[1]}: {why}")
    step = found.before[reached[-1]]
    return replace(
        found,
        model=step.model,
        version=step.version,
        since_unix_s=now_unix_s,
        reason=f"back from {left[0]}@{left[1]}",
        before=found.before[: reached[-1]],
    )
