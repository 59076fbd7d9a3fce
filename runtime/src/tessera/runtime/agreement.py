"""Does a baked graph answer as its export does? Inputs to try both with, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera.domain.signature import Signature
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.measure import synthetic_inputs

TOLERANCE = 1e-4
_SHORT = 7

Inputs = dict[str, Tensor]
Answers = Mapping[str, npt.NDArray[Any]]


class Case(NamedTuple):
    """Inputs, and what the export answers."""

    inputs: Inputs
    wanted: Answers


def cases(signature: Signature, max_batch: int, run: Callable[[Inputs], Answers]) -> list[Case]:
    """Two batch sizes where there is a batch; where dimensions vary also shorter ones; where there are masks also rows with an end, and
    rows of which nothing counts. What the export cannot take beyond the first is left out.

    Raises:
        Exception: whatever `run`, the export, raises for the plainest inputs.
    """
    plain = [synthetic_inputs(signature, batch) for batch in sorted({1, min(2, max_batch)})]
    made = [Case(inputs, run(inputs)) for inputs in plain]
    base = plain[-1]
    further = [_masked(base, keep) for keep in (0.6, 0.0)] if any(map(_is_mask, base)) else []
    short = _shortened(signature, base)
    if short is not None:
        further += [short, _masked(short, 0.6)] if any(map(_is_mask, base)) else [short]
    for inputs in further:
        try:
            made.append(Case(inputs, run(inputs)))
        except Exception:  # lengths that only this model cannot take; ONNX Runtime raises a dozen classes
            continue
    return made


def disagreement(answers: Answers, wanted: Answers) -> str | None:
    """The first output that differs by more than 1e-4 * max(1, max |wanted|), or in anything where it has no fractions."""
    for name, want in wanted.items():
        got = answers.get(name)
        if got is None or got.shape != want.shape or got.dtype != want.dtype:
            return name
        if not np.issubdtype(want.dtype, np.floating):
            if not np.array_equal(got, want):
                return name
            continue
        finite = np.abs(want[np.isfinite(want)])
        limit = TOLERANCE * max(1.0, float(finite.max(initial=0.0)))
        if not np.allclose(got, want, rtol=0, atol=limit, equal_nan=True):
            return name
    return None


def _is_mask(name: str) -> bool:
    return "mask" in name


def _masked(inputs: Inputs, keep: float) -> Inputs:
    """The last row's masks end after `keep` of their length; other rows count in full."""
    found = dict(inputs)
    for name, tensor in inputs.items():
        if _is_mask(name) and tensor.array.ndim >= 2:
            array = tensor.array.copy()
            array[-1, ..., int(array.shape[-1] * keep) :] = 0
            found[name] = Tensor(tensor.datatype, array)
    return found


def _shortened(signature: Signature, inputs: Inputs) -> Inputs | None:
    """The same with varying dimensions but the batch cut; None where nothing varies."""
    found = dict(inputs)
    for spec in signature.inputs:
        first = 1 if signature.batched else 0
        cut = [slice(_SHORT) if size < 0 and place >= first else slice(None) for place, size in enumerate(spec.shape)]
        found[spec.name] = Tensor(inputs[spec.name].datatype, np.ascontiguousarray(inputs[spec.name].array[tuple(cut)]))
    varies = any(found[name].array.shape != inputs[name].array.shape for name in inputs)
    return found if varies else None
