"""How well a variant answers: measured on the user's evaluation set, else against the registered model on generated inputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EXACT_ERROR = 1e-4
"""A variant agrees with the registered model when `max|a-b| <= 1e-4 * max(1, max|b|)` for every output."""
DEFAULT_ALLOWANCE = 0.01
"""One point: what a lossy variant may lose and still be offered without being named."""
MIN_CALIBRATION_SAMPLES = 8
"""Ranges of activations are minima and maxima over the samples. The next input exceeds the largest of n with probability 1 / (n + 1): every
second one after a single sample, every ninth after eight."""


class AccuracySource(StrEnum):
    """evaluation: the variant's score on the user's set. stated: the user's figure, times the agreement. agreement: that alone is known."""

    EVALUATION = "evaluation"
    STATED = "stated"
    AGREEMENT = "agreement"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a variant's answers compare with the registered model's; measured by who built the variant.

    `max_error`: the largest `max|a-b| / max(1, max|b|)` of an output. `cosine`: mean cosine similarity of outputs, -1 to 1. Both on the
    evaluation set's inputs where there is one, else on generated ones; `samples` counts them. `score` and `reference_score` are the
    variant's and the registered model's on the evaluation set by `metric`, 0 to 1 and larger is better; None without a set.
    """

    max_error: float
    cosine: float
    samples: int
    metric: str = ""
    score: float | None = None
    reference_score: float | None = None

    @property
    def exact(self) -> bool:
        return self.max_error <= EXACT_ERROR

    @property
    def loss(self) -> float:
        """What is lost against the registered model, as a share of 1: of its score, else of the agreement."""
        if self.score is not None and self.reference_score is not None:
            return max(0.0, self.reference_score - self.score)
        return max(0.0, 1.0 - self.cosine)


@dataclass(frozen=True, slots=True)
class Accuracy:
    value: float
    source: AccuracySource


def accuracy_of(agreement: Agreement | None, stated: float | None) -> Accuracy:
    """A variant's accuracy, 0 to 1. `agreement` None: it is the registered model itself. `stated`: the user's figure for the model."""
    if agreement is not None and agreement.score is not None:
        return Accuracy(agreement.score, AccuracySource.EVALUATION)
    alike = 1.0 if agreement is None or agreement.exact else max(0.0, agreement.cosine)
    if stated is not None:
        return Accuracy(stated * alike, AccuracySource.STATED)
    return Accuracy(alike, AccuracySource.AGREEMENT)
