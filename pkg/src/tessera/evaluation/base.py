"""What a metric is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

LABELS = "labels"
"""The right answers where they are not named after an output: they belong to the first one."""


class Metric(Protocol):
    """A way to score answers. One from another package is named by an entry point of the group `tessera.metrics` that makes it."""

    @property
    def name(self) -> str: ...

    def score(self, outputs: Arrays, truth: Arrays) -> float:
        """0 to 1, larger is better. Every array has the samples in dimension 0; `outputs` stand in the signature's order.

        Raises:
            InvalidInput: answers that this metric cannot judge: names the array, its dtype or shape, and what was expected.
        """
        ...
