"""The figure by which `min_accuracy` is judged, and where it comes from."""

from __future__ import annotations

import pytest

from tessera.domain.accuracy import Accuracy, AccuracySource, Agreement, accuracy_of

LOSSY = Agreement(max_error=0.02, cosine=0.98, samples=64)


def test_a_score_on_the_users_set_comes_first() -> None:
    scored = Agreement(0.02, 0.98, 1000, "top1", 0.91, 0.93)
    assert accuracy_of(scored, 0.5) == Accuracy(0.91, AccuracySource.EVALUATION)
    assert scored.loss == pytest.approx(0.02)


def test_the_users_figure_shrinks_with_the_agreement() -> None:
    assert accuracy_of(LOSSY, 0.9) == Accuracy(0.9 * 0.98, AccuracySource.STATED)
    assert accuracy_of(None, 0.9) == Accuracy(0.9, AccuracySource.STATED)
    assert LOSSY.loss == pytest.approx(0.02)


def test_else_the_agreement_itself() -> None:
    assert accuracy_of(LOSSY, None) == Accuracy(0.98, AccuracySource.AGREEMENT)
    assert accuracy_of(Agreement(9e-5, 0.9999, 8), None) == Accuracy(1.0, AccuracySource.AGREEMENT)


def test_exact_is_within_a_ten_thousandth() -> None:
    assert Agreement(1e-4, 1.0, 8).exact
    assert not Agreement(1.1e-4, 1.0, 8).exact
