"""Tessera's own metrics. Formulas as in scikit-learn's guide to model evaluation, which the tests compare with; each says what differs.

Where several outputs have right answers, the score is the mean of theirs. Answers that are not finite count as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tessera.domain.errors import InvalidInput
from tessera.evaluation.base import LABELS, Array, Arrays

_PROBABILITY_THRESHOLD = 0.5
Judge = Callable[[str, Array, Array], float]


class EachOutput:
    """A metric that judges one output after the other."""

    def __init__(self, name: str, judge: Judge) -> None:
        self.name = name
        self._judge = judge

    def score(self, outputs: Arrays, truth: Arrays) -> float:
        return float(np.mean([self._judge(name, answers, right) for name, answers, right in pairs(outputs, truth)]))


def pairs(outputs: Arrays, truth: Arrays) -> Iterator[tuple[str, Array, Array]]:
    """(name in `truth`, answers, right answers) of every output that has right answers.

    Raises:
        InvalidInput: no such output, other numbers of samples, or no sample.
    """
    if not truth:
        raise InvalidInput("truth", None, f"must have {LABELS} or an output's name; there is none")
    for name, right in truth.items():
        answers = outputs.get(name) if name != LABELS or LABELS in outputs else next(iter(outputs.values()), None)
        if answers is None:
            raise InvalidInput("truth", name, f"must be {LABELS} or one of {', '.join(outputs)}")
        if not answers.shape or not right.shape or len(answers) != len(right):
            raise InvalidInput(
                f"{name} shape", list(right.shape), f"must have as many samples as the answers of shape {list(answers.shape)}"
            )
        if not len(right):
            raise InvalidInput(f"{name} shape", list(right.shape), "must have at least 1 sample")
        yield name, answers, right


def top1(name: str, answers: Array, right: Array) -> float:
    """The share of samples whose largest score is the right class's. Right answers: class numbers, one-hot rows, or scores whose largest
    counts."""
    found, wanted = _classes(name, answers, right)
    return float(np.mean(found == wanted))


def f1(name: str, answers: Array, right: Array) -> float:
    """Macro F1: the mean of 2*TP / (2*TP + FP + FN) over the classes that occur in either. Two classes may come as one column."""
    found, wanted = _classes(name, answers, right)
    scores = []
    for one in np.union1d(found[found >= 0], wanted):
        hits = int(np.sum((found == one) & (wanted == one)))
        scores.append(2 * hits / (int(np.sum(found == one)) + int(np.sum(wanted == one))))
    return float(np.mean(scores))


def spearman(name: str, answers: Array, right: Array) -> float:
    """Spearman's rank correlation, ties by their mean rank, below 0 as 0; the mean over columns where there are several."""
    found, wanted = _numbers(name, answers, right)
    scores = []
    for a, b in zip(found.T, wanted.T, strict=True):
        if np.all(b == b[0]):
            raise InvalidInput(name, float(b[0]), "is the same for every sample: a rank correlation needs samples that differ")
        constant = not np.isfinite(a).all() or np.all(a == a[0])
        scores.append(0.0 if constant else max(0.0, float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])))
    return min(1.0, float(np.mean(scores)))


def cosine(name: str, answers: Array, right: Array) -> float:
    """The mean cosine similarity of each sample's answer and the right one, both flattened, below 0 as 0. Two zero vectors are alike."""
    found, wanted = _numbers(name, answers, right)
    wrong: Array = np.logical_not(np.isfinite(found).all(axis=1))
    found = np.where(wrong[:, None], 0.0, found)
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(wanted, axis=1)
    product = lengths[0] * lengths[1]
    alike = np.sum(found * wanted, axis=1) / np.where(product > 0, product, 1.0)
    alike = np.where((lengths[0] == 0) & (lengths[1] == 0), 1.0, alike)
    return min(1.0, max(0.0, float(np.mean(np.where(wrong, 0.0, alike)))))


def mse(name: str, answers: Array, right: Array) -> float:
    """The mean squared error as a score: `max(0, 1 - mse / variance of the right answers)`, the coefficient of determination (R^2).

    The variance is each column's own, and columns are weighted by it: errors count where right answers differ.
    """
    found, wanted = _numbers(name, answers, right)
    variance = float(np.mean(np.square(wanted - wanted.mean(axis=0))))
    if variance == 0:
        raise InvalidInput(
            name, float(wanted.flat[0]), "is the same for every sample: an error needs samples that differ to be measured by"
        )
    if not np.isfinite(found).all():
        return 0.0
    return max(0.0, 1.0 - float(np.mean(np.square(found - wanted))) / variance)


METRICS: dict[str, Callable[[], EachOutput]] = {
    judge.__name__: lambda judge=judge: EachOutput(judge.__name__, judge)  # type: ignore[misc]
    for judge in (top1, f1, spearman, cosine, mse)
}


def _classes(name: str, answers: Array, right: Array) -> tuple[Array, Array]:
    """Class numbers, flat: of the answers (-1 where no score is a number) and of the right answers."""
    if answers.dtype.kind not in "biuf":
        raise InvalidInput(f"answers to {name}", str(answers.dtype), "must be class numbers or scores")
    scored = answers.dtype.kind == "f" and answers.ndim > 1 and answers.shape[-1] > 1
    wanted = _right_classes(name, right) if scored and right.shape == answers.shape else right
    if wanted.dtype.kind not in "biu":
        or_scores = f", or scores of shape {list(answers.shape)}" if scored else ""
        raise InvalidInput(f"{name} dtype", str(right.dtype), f"must be class numbers{or_scores}")
    if wanted.ndim == answers.ndim and wanted.shape[-1] == 1 != answers.shape[-1]:
        wanted = wanted[..., 0]
    column = answers.ndim == wanted.ndim + 1 and answers.shape[-1] == 1
    if column or answers.shape == wanted.shape:
        flat = answers.reshape(wanted.shape)
        found, classes = (_sides(flat), 2) if flat.dtype.kind == "f" else (flat, None)
    elif answers.ndim == wanted.ndim + 1 and answers.shape[:-1] == wanted.shape:
        found, classes = _largest(answers), answers.shape[-1]
    else:
        raise InvalidInput(f"{name} shape", list(right.shape), f"must be {list(answers.shape[:-1])} for scores of {list(answers.shape)}")
    least, most = int(wanted.min()), int(wanted.max())
    if least < 0 or (classes is not None and most >= classes):
        limit = f"must be a class number from 0{'' if classes is None else f' to {classes - 1}'}"
        raise InvalidInput(name, least if least < 0 else most, limit)
    return found.reshape(-1).astype(np.int64), wanted.reshape(-1).astype(np.int64)


def _right_classes(name: str, right: Array) -> Array:
    """Of right answers with a number for each class. Whole ones must be one-hot: of several right classes only one is the largest."""
    if right.dtype.kind in "biu":
        odd = np.logical_or(right.astype(bool).sum(axis=-1) != 1, right.max(axis=-1) != 1)
        if odd.any():
            raise InvalidInput(name, right[odd][0][:16].tolist(), f"must be one-hot, or class numbers of shape {list(right.shape[:-1])}")
    return _largest(right)


def _largest(scores: Array) -> Array:
    """The class with the largest score, the first of equals; -1 where one is no number, so that it is nobody's."""
    largest = np.argmax(scores, axis=-1)
    return largest if scores.dtype.kind != "f" else np.where(np.isnan(scores).any(axis=-1), -1, largest)


def _sides(scores: Array) -> Array:
    """Two classes from one score: a probability where all are from 0 to 1, else a logit."""
    probability = bool(np.all((scores >= 0) & (scores <= 1)))
    return np.where(np.isnan(scores), -1, scores > (_PROBABILITY_THRESHOLD if probability else 0.0))


def _numbers(name: str, answers: Array, right: Array) -> tuple[Array, Array]:
    """Both as float64 of shape (samples, values)."""
    if right.dtype.kind not in "biuf" or answers.dtype.kind not in "biuf":
        raise InvalidInput(f"{name} dtype", str(right.dtype), f"must be numbers, as the answers must; those are {answers.dtype}")
    rows = len(right)
    found, wanted = answers.reshape(rows, -1).astype(np.float64), right.reshape(rows, -1).astype(np.float64)
    if found.shape != wanted.shape:
        raise InvalidInput(f"{name} shape", list(right.shape), f"must be {list(answers.shape)}, as the answers'")
    if not np.isfinite(wanted).all():
        raise InvalidInput(name, float(wanted[~np.isfinite(wanted)][0]), "must be finite")
    return found, wanted


def _ranks(values: Array) -> Array:
    """Ranks from 0; equal values share their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - (counts + 1) / 2)[place]
    return ranks
