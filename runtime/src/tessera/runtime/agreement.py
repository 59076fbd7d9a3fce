"""Does a baked graph answer as its export does, and how much so? Inputs to try both with, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera.domain.accuracy import EXACT_ERROR, Agreement
from tessera.domain.signature import Signature
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.measure import synthetic_inputs

_SHORT = 7
_LOUDNESS = (1.0, 100.0)
"""How many times as large as drawn the fractions of a row are that another one is put beside."""
_OTHER = 1.0
"""The error of an output of which something without a size differs: a whole number, an infinity."""

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
        limit = EXACT_ERROR * max(1.0, float(finite.max(initial=0.0)))
        if not np.allclose(got, want, rtol=0, atol=limit, equal_nan=True):
            return name
    return None


class Tally:
    """How answers compare with the wanted ones, answer by answer."""

    def __init__(self, batched: bool) -> None:
        self._batched = batched
        self._max_error = 0.0
        self._cosines: list[float] = []
        self.samples = 0

    def add(self, answers: Answers, wanted: Answers) -> None:
        """One answer to one request. Both have the same outputs, in the same shapes."""
        for name, want in wanted.items():
            got = answers[name]
            self._max_error = max(self._max_error, _error(got, want))
            rows = zip(got, want, strict=True) if self._batched and want.ndim else [(got, want)]
            self._cosines += [_cosine(one, other) for one, other in rows]
        first = next(iter(wanted.values()))
        self.samples += len(first) if self._batched and first.ndim else 1

    def agreement(self) -> Agreement:
        return Agreement(self._max_error, float(np.mean(self._cosines)) if self._cosines else 1.0, self.samples)


def compared(run: Callable[[Inputs], Answers], cases: Iterable[Case], batched: bool) -> Agreement:
    """How `run` agrees with what the cases want."""
    tally = Tally(batched)
    for case in cases:
        tally.add(run(case.inputs), case.wanted)
    return tally.agreement()


def generated(signature: Signature, samples: int, batch: int, run: Callable[[Inputs], Answers]) -> list[Case]:
    """`samples` or a few more generated inputs, `batch` at a time where there is a batch, other ones than those of `cases`."""
    step = batch if signature.batched else 1
    made = (synthetic_inputs(signature, step, seed) for seed in range(1, -(-samples // step) + 1))
    return [Case(inputs, run(inputs)) for inputs in made]


def rows_mix(signature: Signature, run: Callable[[Inputs], Answers]) -> bool:
    """Whether a row's answer depends on the row beside it: one and the same beside others. All these batches have one size and so the same
    kernels, by which a row that stays by itself has the same answer."""
    base = synthetic_inputs(signature, 2)
    wanted = _first_row(run(base))
    for seed, times in enumerate(_LOUDNESS, start=1):
        other = synthetic_inputs(signature, 2, seed)
        try:
            got = run({name: _beside(tensor, other[name], times) for name, tensor in base.items()})
        except Exception:  # numbers that this model cannot take; ONNX Runtime raises a dozen classes
            continue
        if disagreement(_first_row(got), wanted) is not None:
            return True
    return False


def _beside(base: Tensor, other: Tensor, times: float) -> Tensor:
    """The first row of the one, and the second of the other."""
    array = base.array.copy()
    array[1:] = other.array[1:] * array.dtype.type(times) if np.issubdtype(array.dtype, np.floating) else other.array[1:]
    return Tensor(base.datatype, array)


def _first_row(answers: Answers) -> Answers:
    return {name: array[:1] for name, array in answers.items()}


def _error(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    """`max|a-b| / max(1, max|b|)`."""
    if not np.issubdtype(want.dtype, np.floating):
        return 0.0 if np.array_equal(got, want) else _OTHER
    finite = np.isfinite(want)
    if not np.array_equal(np.isfinite(got), finite) or not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return _OTHER
    difference = np.abs(got[finite].astype(np.float64) - want[finite]).max(initial=0.0)
    return float(difference / max(1.0, float(np.abs(want[finite]).max(initial=0.0))))


def _cosine(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    """Of two tensors as vectors; of whole numbers the share that is equal. 1 where both are zero."""
    if not np.issubdtype(want.dtype, np.floating):
        return float((got == want).mean()) if want.size else 1.0
    one, other = (np.nan_to_num(array.astype(np.float64).ravel(), posinf=0.0, neginf=0.0) for array in (got, want))
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    if lengths == 0.0:
        return 1.0 if np.array_equal(one, other) else 0.0
    return float(np.clip(one @ other / lengths, -1.0, 1.0))


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
