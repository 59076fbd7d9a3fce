"""The share of samples whose right class has one of the five largest scores."""

from __future__ import annotations

import numpy as np

from tessera.domain.errors import InvalidInput
from tessera.evaluation import Arrays


class Top5:
    name = "top5"

    def score(self, outputs: Arrays, truth: Arrays) -> float:
        scores, labels = next(iter(outputs.values())), truth["labels"]
        if scores.ndim != 2 or labels.shape != scores.shape[:1]:
            raise InvalidInput("labels shape", list(labels.shape), f"must be {list(scores.shape[:1])} for scores of {list(scores.shape)}")
        best = np.argsort(-scores, axis=1)[:, :5]
        return float(np.mean(np.any(best == labels[:, None], axis=1)))
