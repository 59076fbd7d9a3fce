"""A metric from another package: installed, it is one of the metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tessera.domain.errors import InvalidInput
from tessera.evaluation import metric, metric_names

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "metric-top5"


def test_it_is_short() -> None:
    assert sum(len(path.read_text().splitlines()) for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml")) < 60


def test_installing_the_package_is_all(install_example: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInput, match="metric 'top5'"):
        metric("top5")
    install_example("metric-top5")
    assert "top5" in metric_names()
    scores = np.tile(np.arange(10.0), (4, 1))
    assert metric("top5").score({"logits": scores}, {"labels": np.array([9, 5, 4, 0])}) == 0.5
    with pytest.raises(InvalidInput, match=r"labels shape \[3\]: must be \[4\]"):
        metric("top5").score({"logits": scores}, {"labels": np.array([9, 5, 4])})
