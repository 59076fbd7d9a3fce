"""A build on the user's evaluation set: how its answers compare with the export's, and how both score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.domain.accuracy import Agreement
from tessera.domain.signature import Signature
from tessera.evaluation import EvaluationSet, metric
from tessera.runtime.agreement import Tally
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.recipes.calibration import spread

MAX_SAMPLES = 2000
"""Of a larger set this many are scored, evenly spread over it: the standard error of a share is 1.1 points at most then."""
_BATCH = 8

Run = Callable[[dict[str, Tensor]], Mapping[str, npt.NDArray[Any]]]


def evaluate(found: EvaluationSet, metric_name: str, signature: Signature, max_batch: int, reference: Run | None, run: Run) -> Agreement:
    """`reference`: what was registered; None where `run` is that itself.

    Raises:
        InvalidInput: there is no such metric, or it cannot judge these answers.
        FailedPrecondition: the metric's package is at fault.
    """
    judge = metric(metric_name)
    chosen = spread(found.samples, MAX_SAMPLES)
    if len(chosen) < found.samples:
        found = replace(found, inputs=_taken(found.inputs, chosen), truth=_taken(found.truth, chosen), samples=len(chosen))
    datatypes = {spec.name: spec.datatype for spec in signature.inputs}
    tally = Tally(signature.batched)
    wanted: list[Mapping[str, npt.NDArray[Any]]] = []
    got: list[Mapping[str, npt.NDArray[Any]]] = []
    for request in found.requests(min(max_batch, _BATCH)):
        inputs = {name: Tensor(datatypes[name], np.ascontiguousarray(array)) for name, array in request.items()}
        got.append(run(inputs))
        if reference is not None:
            wanted.append(reference(inputs))
            tally.add(got[-1], wanted[-1])
    order = [spec.name for spec in signature.outputs]
    score, *reference_score = (judge.score(_ordered(found.joined(each), order), found.truth) for each in (got, wanted) if each)
    if not reference_score:
        return Agreement(0.0, 1.0, found.samples, metric_name, score, score)
    return replace(tally.agreement(), metric=metric_name, score=score, reference_score=reference_score[0])


def _taken(arrays: Mapping[str, npt.NDArray[Any]], places: list[int]) -> dict[str, npt.NDArray[Any]]:
    return {name: array[places] for name, array in arrays.items()}


def _ordered(answers: Mapping[str, npt.NDArray[Any]], order: list[str]) -> dict[str, npt.NDArray[Any]]:
    return {name: answers[name] for name in order}
