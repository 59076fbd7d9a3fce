"""Which nodes may hold a variant at all. Every refusal explains itself and is counted.

Filters are a mechanism, not a policy: they hold whatever the policies propose. Cheap ones come first; the first that refuses
speaks for the node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tessera.domain.ids import NodeId
from tessera.policy.placement.base import Placement
from tessera.policy.view import Candidate, NodeCondition, NodeView

PINNED_BY_SHOWN = 4


class RefusalKind(StrEnum):
    DOMAIN = "domain"
    SUSPECT = "suspect"
    SILENT = "silent"
    BUILD_CLASS = "build_class"
    FLAVOUR = "flavour"
    STORE = "store"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node was not taken. For the kind `store`: what its store lacks, of what, how much of that nothing can reclaim now, and which
    variants live there."""

    node_id: NodeId
    kind: RefusalKind
    reason: str
    short_bytes: int = 0
    needed_bytes: int = 0
    budget_bytes: int = 0
    pinned_bytes: int = 0
    pinned_by: tuple[str, ...] = ()

    @property
    def may_pass(self) -> bool:
        """Whether waiting may help: a lease comes back, an agent reports, an instance that is in use now becomes idle and makes room."""
        if self.kind is RefusalKind.STORE:
            return self.needed_bytes <= self.budget_bytes
        return self.kind in (RefusalKind.SUSPECT, RefusalKind.SILENT)


Filter = Callable[[Candidate, NodeView, Placement], Refusal | None]


def serves_domain(candidate: Candidate, node: NodeView, placement: Placement) -> Refusal | None:
    if candidate.key.trust_domain in node.stores:
        return None
    return Refusal(node.node_id, RefusalKind.DOMAIN, f"has no store of trust domain {candidate.key.trust_domain}")


def answering(candidate: Candidate, node: NodeView, placement: Placement) -> Refusal | None:
    if node.condition is NodeCondition.SUSPECT:
        return Refusal(node.node_id, RefusalKind.SUSPECT, "is suspect: its lease is lost")
    if node.condition is NodeCondition.SILENT:
        return Refusal(node.node_id, RefusalKind.SILENT, "does not report: its agent has no status stream to this leader")
    return None


def same_build_class(candidate: Candidate, node: NodeView, placement: Placement) -> Refusal | None:
    wanted = candidate.record.build_class
    if wanted is None or wanted == node.build_class:
        return None
    return Refusal(node.node_id, RefusalKind.BUILD_CLASS, f"is of build class {node.build_class}; the variant was built for {wanted}")


def has_flavour(candidate: Candidate, node: NodeView, placement: Placement) -> Refusal | None:
    if candidate.record.flavour in node.flavours:
        return None
    return Refusal(
        node.node_id, RefusalKind.FLAVOUR, f"has no {candidate.record.flavour} runtimes; it has {', '.join(node.flavours) or 'none'}"
    )


def has_room(candidate: Candidate, node: NodeView, placement: Placement) -> Refusal | None:
    store = node.store(candidate.key.trust_domain)
    short = placement.bytes_to_fetch - store.room_bytes
    if short <= 0:
        return None
    needed, room = size_words(placement.bytes_to_fetch), size_words(store.room_bytes)
    reason = f"is short of {size_words(short)} in its store: {needed} to fetch, {room} free or reclaimable"
    domain = candidate.key.trust_domain  # nobody learns what another domain has here
    living = tuple(sorted({str(instance.variant) for instance in node.instances if instance.variant.trust_domain == domain}))
    figures = placement.bytes_to_fetch, store.budget_bytes, store.held_bytes
    return Refusal(node.node_id, RefusalKind.STORE, reason, short, *figures, living)


FILTERS: tuple[Filter, ...] = (serves_domain, answering, same_build_class, has_flavour, has_room)


def refusal(candidate: Candidate, node: NodeView, placement: Placement, filters: Sequence[Filter] = FILTERS) -> Refusal | None:
    """The first refusal, or None where the node may hold the candidate."""
    return next((found for check in filters if (found := check(candidate, node, placement)) is not None), None)


_WORDS = {
    RefusalKind.DOMAIN: ("does not serve the trust domain", "do not serve the trust domain"),
    RefusalKind.SUSPECT: ("is suspect (its lease is lost)", "are suspect (their leases are lost)"),
    RefusalKind.SILENT: ("does not report", "do not report"),
    RefusalKind.BUILD_CLASS: ("is of another build class", "are of another build class"),
    RefusalKind.FLAVOUR: ("has no runtime of the flavour", "have no runtime of the flavour"),
    RefusalKind.FAILED: ("failed at this start", "failed at this start"),
}


def explain(refusals: Sequence[Refusal], nodes: int) -> str:
    """Counts refusals into one sentence, e.g. "0 of 3 nodes: 2 are of another build class, 1 is short of 2.1 GiB in its store"."""
    if nodes == 0:
        return "0 of 0 nodes: no node is registered"
    by_kind = {kind: [item for item in refusals if item.kind is kind] for kind in RefusalKind}
    parts = [_part(kind, found) for kind, found in sorted(by_kind.items(), key=lambda entry: -len(entry[1])) if found]
    refused = len({item.node_id for item in refusals})
    return f"{nodes - refused} of {nodes} nodes: {', '.join(parts)}" if parts else f"{nodes} of {nodes} nodes"


def _part(kind: RefusalKind, found: Sequence[Refusal]) -> str:
    one = len(found) == 1
    if kind is RefusalKind.STORE:
        least, most = min(item.short_bytes for item in found), max(item.short_bytes for item in found)
        amount = size_words(least) if size_words(least) == size_words(most) else f"{size_words(least)} to {size_words(most)}"
        words = f"{len(found)} {'is' if one else 'are'} short of {amount} in {'its store' if one else 'their stores'}"
        roomiest = min(found, key=lambda item: item.short_bytes)
        return f"{words} ({_figures(roomiest)})" if roomiest.budget_bytes else words
    return f"{len(found)} {_WORDS[kind][0 if one else 1]}"


def _figures(refusal: Refusal) -> str:
    needed, budget, pinned = map(size_words, (refusal.needed_bytes, refusal.budget_bytes, refusal.pinned_bytes))
    shown = list(refusal.pinned_by[:PINNED_BY_SHOWN])
    if len(refusal.pinned_by) > PINNED_BY_SHOWN:
        shown.append(f"{len(refusal.pinned_by) - PINNED_BY_SHOWN} more")
    by = f" by {', '.join(shown)}" if shown and refusal.pinned_bytes else ""
    return f"{needed} needed, of a budget of {budget} {pinned} are pinned{by}"


def size_words(size_bytes: int) -> str:
    """Bytes for people: "2.1 GiB", "512 B"."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
