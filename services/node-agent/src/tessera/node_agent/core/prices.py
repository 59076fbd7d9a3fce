"""What an hour of a node costs, from a catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from tessera.domain.ids import ProfileClass


@dataclass(frozen=True, slots=True)
class ClassPrice:
    """Of the profile classes that fit a shell pattern."""

    match: str
    usd_per_core_hour: float


@dataclass(frozen=True, slots=True)
class PriceCatalogue:
    """`as_of`: when the prices were right. The first entry that fits counts."""

    as_of: str
    source: str
    classes: tuple[ClassPrice, ...]

    def usd_per_hour(self, profile_class: ProfileClass, cores: int) -> float:
        """0 where no entry fits: nobody said."""
        found = next((entry for entry in self.classes if fnmatchcase(profile_class, entry.match)), None)
        return found.usd_per_core_hour * cores if found is not None else 0.0
