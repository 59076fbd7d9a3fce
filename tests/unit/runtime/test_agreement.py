"""How answers are compared: exactly for whole numbers, by the largest error and by the angle for fractions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tessera.domain.signature import Signature, TensorSpec
from tessera.runtime.agreement import Inputs, Tally, rows_mix
from tessera.runtime.recipes.calibration import spread


def test_error_is_relative_to_the_largest_wanted_value_and_cosine_a_mean_over_samples() -> None:
    tally = Tally(batched=True)
    want = np.array([[4.0, 0.0], [0.0, 2.0]], np.float32)
    tally.add({"y": np.array([[4.0, 0.4], [0.0, 2.0]], np.float32)}, {"y": want})
    found = tally.agreement()
    assert found.max_error == pytest.approx(0.1)
    assert found.cosine == pytest.approx((4.0 / np.hypot(4.0, 0.4) + 1.0) / 2)
    assert found.samples == 2
    assert not found.exact


def test_answers_below_one_count_by_their_difference() -> None:
    tally = Tally(batched=False)
    tally.add({"y": np.float32([1e-5])}, {"y": np.float32([0.0])})
    assert tally.agreement().max_error == pytest.approx(1e-5)
    assert tally.agreement().cosine == 0.0  # one is zero and the other is not
    assert tally.agreement().exact


@pytest.mark.parametrize(
    ("got", "want", "cosine"),
    [
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.75),
        (np.float32([np.nan, 1]), np.float32([1, 1]), np.sqrt(0.5)),
        (np.float32([np.inf, 1]), np.float32([-np.inf, 1]), 1.0),
    ],
)
def test_what_has_no_size_is_an_error_of_one(got: np.ndarray, want: np.ndarray, cosine: float) -> None:
    tally = Tally(batched=False)
    tally.add({"y": got}, {"y": want})
    assert tally.agreement().max_error == 1.0
    assert tally.agreement().cosine == pytest.approx(cosine)


def test_equal_infinities_agree() -> None:
    tally = Tally(batched=False)
    tally.add({"y": np.float32([np.inf, np.nan, 2.0])}, {"y": np.float32([np.inf, np.nan, 2.0])})
    assert tally.agreement().exact


def test_samples_are_spread_evenly() -> None:
    assert spread(10, 128) == list(range(10))
    assert spread(1000, 4) == [0, 250, 500, 750]


FLOATS = Signature((TensorSpec("x", "FP32", (-1, 8)),), (TensorSpec("y", "FP32", (-1, 8)),))
TOKENS = Signature((TensorSpec("x", "INT64", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))


def as_they_come(x: np.ndarray) -> np.ndarray:
    """In 255 steps over all that there is."""
    step = np.float32(np.abs(x).max() / 127)
    return np.round(x / step) * step


def in_fixed_steps(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x * 20), -127, 127) / np.float32(20)


def row_by_row(x: np.ndarray) -> np.ndarray:
    return np.stack([as_they_come(row) for row in x])


@pytest.mark.parametrize("signature", [FLOATS, TOKENS])
@pytest.mark.parametrize(("quantised", "mix"), [(as_they_come, True), (in_fixed_steps, False), (row_by_row, False)])
def test_rows_mix_where_one_row_moves_the_steps_of_another(signature: Signature, quantised: Callable, mix: bool) -> None:
    embedding = np.random.default_rng(3).standard_normal(100).astype(np.float32)

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        x = inputs["x"].array
        return {"y": quantised(embedding[x] if x.dtype.kind == "i" else x)}

    assert rows_mix(signature, run) is mix


def test_numbers_that_a_model_does_not_take_tell_nothing_of_its_rows() -> None:
    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        if np.abs(inputs["x"].array).max() > 20:
            raise IndexError("out of range")
        return {"y": inputs["x"].array}

    assert not rows_mix(FLOATS, run)
