"""What one start request has tried already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tessera.domain.errors import TesseraError
from tessera.domain.ids import VariantKey
from tessera.domain.instance import StartPath
from tessera.policy.start.base import OptionKey


@dataclass(frozen=True, slots=True)
class Failure:
    """A start that came to nothing. `unreachable`: the agent did not answer, so that no other option on this node will do better."""

    option: OptionKey
    error: TesseraError
    unreachable: bool


@dataclass(slots=True)
class Attempts:
    """One request's own story: what failed, and how often it was tried. A transformation that was refused is counted by itself: it takes
    nothing from the tries of the paths that work without a donor."""

    failures: dict[OptionKey, TesseraError] = field(default_factory=dict)
    count: int = 0
    transformations: int = 0

    def words(self) -> dict[OptionKey, str]:
        return {key: error.message for key, error in self.failures.items()}

    def add(self, failure: Failure, candidates: Sequence[VariantKey]) -> None:
        if failure.option[2] is StartPath.TRANSFORM and not failure.unreachable:
            self.transformations += 1
        else:
            self.count += 1
        self.failures[failure.option] = failure.error
        if failure.unreachable:
            node_id = failure.option[1]
            paths = [path for path in StartPath if path is not StartPath.WARM]
            self.failures.update({(key, node_id, path): failure.error for key in candidates for path in paths})

    def forget_passing(self) -> bool:
        """Lets retryable failures be tried again; whether there were any."""
        kept = {key: error for key, error in self.failures.items() if not error.retryable}
        changed = len(kept) < len(self.failures)
        self.failures = kept
        return changed
