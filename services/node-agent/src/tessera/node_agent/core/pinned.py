"""Who keeps a store full, in the words of somebody who knows models and instances, not runtimes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tessera.domain.errors import ResourceExhausted
from tessera.domain.ids import Digest, VariantKey
from tessera.node_agent.core.table import Instance

SHOWN = 8


def unfit(variant: VariantKey, error: ResourceExhausted, instances: Iterable[Instance], sizes: Mapping[Digest, int]) -> ResourceExhausted:
    """The store's refusal, with the variant that it is about and the instances of its trust domain that are in the way."""
    living = [instance for instance in instances if instance.variant.trust_domain == variant.trust_domain]
    return ResourceExhausted(f"{variant} does not fit into the node's store: {error.message}; in use by {pinned_by(living, sizes)}")


def pinned_by(instances: Iterable[Instance], sizes: Mapping[Digest, int]) -> str:
    """Every live instance with the bytes of the store that it needs, the largest first; what siblings share counts for each of them."""
    needs = sorted(
        ((sum(sizes.get(digest, 0) for digest in instance.blobs), instance) for instance in instances if instance.alive and instance.blobs),
        key=lambda found: (-found[0], found[1].instance_id),
    )
    words = [f"{instance.variant} (instance {instance.instance_id}, {instance.state}): {size}" for size, instance in needs[:SHOWN]]
    if len(needs) > SHOWN:
        words.append(f"and {len(needs) - SHOWN} more instances")
    return ", ".join(words) or "no instance"
