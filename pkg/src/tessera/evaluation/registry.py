"""Name -> metric: Tessera's own, and those of other packages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

from tessera.domain.errors import FailedPrecondition
from tessera.evaluation.base import Arrays, Metric
from tessera.evaluation.metrics import METRICS
from tessera.plugins import factory, with_plugins

GROUP = "tessera.metrics"
_OWN = cast(dict[str, Callable[[], Metric]], METRICS)


class _Checked:
    """A metric whose score is surely one."""

    def __init__(self, name: str, judged_by: Metric) -> None:
        self.name = name
        self._metric = judged_by

    def score(self, outputs: Arrays, truth: Arrays) -> float:
        found = float(self._metric.score(outputs, truth))
        if not math.isfinite(found) or not 0 <= found <= 1:
            raise FailedPrecondition(f"metric {self.name!r} scored {found}; a score is from 0 to 1")
        return found


def metric(name: str) -> Metric:
    """The metric `name`.

    Raises:
        InvalidInput: no metric has this name; it lists those that exist.
        FailedPrecondition: the package that offers it cannot be imported or offers something else. Also from `score`: what it
            answers is no score.
    """
    made = factory("metric", name, GROUP, _OWN)()
    if not callable(getattr(made, "score", None)):
        raise FailedPrecondition(f"metric {name!r} is a {type(made).__name__}, which has no score(outputs, truth)")
    return _Checked(name, made)


def metric_names() -> tuple[str, ...]:
    return tuple(sorted(with_plugins(GROUP, _OWN)))
