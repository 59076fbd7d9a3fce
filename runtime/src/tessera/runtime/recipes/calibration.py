"""What ranges of activations are taken from: the user's calibration set, else the evaluation set's inputs, else generated inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.domain.signature import Signature
from tessera.runtime.measure import synthetic_inputs

MAX_SAMPLES = 128
"""More do not move minima and maxima much, and each one runs through the graph with every activation watched."""
GENERATED_SAMPLES = 16
_GENERATED_SEED = 1000

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """`requests`: inputs as the graph takes them, a sample each. `words`: what they are."""

    requests: tuple[Arrays, ...]
    words: str


def of_set(inputs: Mapping[str, npt.NDArray[Any]], samples: int, batched: bool, words: str) -> Calibration:
    """At most `MAX_SAMPLES` of a set's samples, evenly spread over it: sets are often in the order of their labels."""
    chosen = spread(samples, MAX_SAMPLES)
    requests = tuple(
        {name: array[place : place + 1] if batched else np.ascontiguousarray(array[place]) for name, array in inputs.items()}
        for place in chosen
    )
    return Calibration(requests, f"calibrated on {len(requests)} samples of {words}")


def generated(signature: Signature) -> Calibration:
    requests = (synthetic_inputs(signature, 1, _GENERATED_SEED + number) for number in range(GENERATED_SAMPLES))
    return Calibration(
        tuple({name: tensor.array for name, tensor in inputs.items()} for inputs in requests),
        f"calibrated on {GENERATED_SAMPLES} generated inputs: give --calibration or --eval for the ranges of real ones",
    )


def spread(samples: int, most: int) -> list[int]:
    """At most `most` places from 0 to `samples` - 1, evenly spread."""
    count = min(samples, most)
    return [place * samples // count for place in range(count)]


class Reader:
    """The calibration as ONNX Runtime's quantiser reads it (its `CalibrationDataReader` is recognised by `get_next`)."""

    def __init__(self, requests: tuple[Arrays, ...]) -> None:
        self._left: Iterator[Arrays] = iter(requests)

    def get_next(self) -> Arrays | None:
        return next(self._left, None)
