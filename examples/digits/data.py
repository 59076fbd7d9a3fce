"""scikit-learn's digits (it carries the data inside the package), split once and for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT_FRACTION = 0.2
SPLIT_SEED = 20


@dataclass(frozen=True)
class Digits:
    """Images float32 (n, 1, 8, 8) in [0, 1]; labels int64 (n,)."""

    images: np.ndarray
    labels: np.ndarray


def load() -> tuple[Digits, Digits]:
    """The training part and the held-out part; the same split on every machine."""
    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=HELD_OUT_FRACTION, random_state=SPLIT_SEED, stratify=labels)
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


def rotated(images: np.ndarray) -> np.ndarray:
    """The images turned by a quarter."""
    return np.ascontiguousarray(np.rot90(images, axes=(2, 3)))


TASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "parity": lambda labels: labels % 2,
    "has-a-loop": lambda labels: np.isin(labels, [0, 6, 8, 9]).astype(np.int64),
    "greater-than-four": lambda labels: (labels > 4).astype(np.int64),
    "rotated": lambda labels: labels,
}
"""Sibling -> its label for a digit. `rotated` reads the digit from turned images."""
