"""Policies, metrics and backends from other packages, by entry point.

A package's pyproject.toml says `[project.entry-points."tessera.policies.variant"]` and below it `NAME = "module:factory"`. An installed
package is trusted as the services are. Its code is imported when the name is asked for, never before, so that one that nobody uses
costs nothing and breaks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar, cast

from tessera.domain.errors import FailedPrecondition, InvalidInput

Factory = TypeVar("Factory", bound=Callable[..., object])


def plugins(group: str) -> dict[str, Callable[..., object]]:
    """What installed packages offer under the group. Calling one imports it and passes the arguments on.

    Raises:
        FailedPrecondition: two packages offer the same name. From a call: the package cannot be imported, or names nothing callable.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if (other.value, _package(other)) != (point.value, _package(point)):
            raise FailedPrecondition(f"{group}: {point.name!r} is offered twice, by {_package(other)} and {_package(point)}")
    return {name: _late(group, point) for name, point in found.items()}


def with_plugins(group: str, own: Mapping[str, Factory]) -> dict[str, Factory]:
    """Tessera's own and those of other packages, which cannot replace an own one.

    Raises: FailedPrecondition, as `plugins` and where a package offers a name of Tessera's own.
    """
    others = plugins(group)
    taken = sorted(own.keys() & others.keys())
    if taken:
        raise FailedPrecondition(f"{group}: {taken[0]!r} is offered by a package, but is a name of Tessera's own")
    return {**own, **cast(dict[str, Factory], others)}


def factory(what: str, name: str, group: str, own: Mapping[str, Factory]) -> Factory:
    """The factory of that name, Tessera's own or another package's. `what` is what it makes, for words.

    Raises:
        InvalidInput: there is none; it lists those that exist.
        FailedPrecondition: as `with_plugins`.
    """
    known = with_plugins(group, own)
    if name not in known:
        raise InvalidInput(what, name, f"one of {', '.join(sorted(known))}")
    return known[name]


def _late(group: str, point: EntryPoint) -> Callable[..., object]:
    def call(*arguments: object, **named: object) -> object:
        try:
            target = point.load()
        except (ImportError, AttributeError) as error:
            raise FailedPrecondition(f"{group}: {point.name!r} of {_package(point)} ({point.value}): {error}") from error
        if not callable(target):
            raise FailedPrecondition(f"{group}: {point.name!r} of {_package(point)} ({point.value}) is no factory")
        return target(*arguments, **named)

    return call


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"
