"""What the generator of variants knows of a recipe beside the base ones. Another package's stands behind two entry points of its name:
`tessera.recipes` makes the `Recipe` (for the registry), `tessera.recipes.make` builds by it (for bakers)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tessera.domain.ids import BuildClass
from tessera.domain.records import VersionRecord


@dataclass(frozen=True, slots=True)
class Recipe:
    """`exact`: what it makes has to agree with the registered model within 1e-4.

    `gains` says from a version's operators, and from the class of a node (None while none is known), whether it can gain from it. Whether
    it does is for profiles to say: int8 wins where there is VNNI and seldom elsewhere. `backend` opens what it makes, in runtimes of
    `flavour`; a build for flavour `aten` is made of the version's flat program, others of its export. `by_default`: made without being
    asked for.
    """

    name: str
    precision: str
    exact: bool
    gains: Callable[[VersionRecord, BuildClass | None], bool]
    backend: str = "ort"
    flavour: str = "ort"
    by_default: bool = True
