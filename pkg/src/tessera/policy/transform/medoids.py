"""K-medoids: the few of many from which all are least far. Whoever stands for the others is one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tessera.domain.errors import FailedPrecondition
from tessera.policy.transform.matrix import Costs

Clustering = Callable[[Costs, int], list[int]]
"""Symmetric distances with a diagonal of 0, and how many medoids, 1 to all; their places, ascending. Nothing in it is random."""


def faster_pam(distances: Costs, count: int) -> list[int]:
    """FasterPAM (Schubert and Rousseeuw, Information Systems 101, 2021), begun from places that lie far from each other.

    Raises: FailedPrecondition, as `library`.
    """
    begun = np.array(farthest_first(distances, count))
    return sorted(library().fasterpam(distances, begun, n_cpu=1).medoids.tolist())


def library() -> Any:
    """Raises: FailedPrecondition: `kmedoids` is not installed (extra `kmedoids`)."""
    try:
        import kmedoids
    except ImportError as error:
        raise FailedPrecondition(f"k-medoids needs tessera-pkg[kmedoids]: {error}") from error
    return kmedoids


def farthest_first(distances: Costs, count: int) -> list[int]:
    """From the most central one on, always who is farthest from those taken (Gonzalez, 1985): at most twice the least radius."""
    taken = [int(np.argmin(distances.sum(axis=0)))]
    nearest = distances[taken[0]].copy()
    while len(taken) < count:
        nearest[taken] = -1.0
        taken.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, distances[taken[-1]])
    return sorted(taken)
