"""Scores against scikit-learn's and scipy's, and what a metric refuses."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, r2_score

from tessera.domain.errors import FailedPrecondition, InvalidInput
from tessera.evaluation import metric, metric_names
from tessera.plugins import _plugins

RANDOM = np.random.default_rng(7)
LABELS = RANDOM.integers(0, 4, 200)
SCORES = RANDOM.standard_normal((200, 4)).astype(np.float32)
OWN = ("cosine", "f1", "mse", "spearman", "top1")


def score(name: str, answers: Any, right: Any) -> float:
    return metric(name).score({"out": np.asarray(answers)}, {"labels": np.asarray(right)})


def test_there_are_five() -> None:
    assert set(OWN) <= set(metric_names())
    assert all(metric(name).name == name for name in OWN)


def test_an_unknown_metric_names_those_that_exist() -> None:
    with pytest.raises(InvalidInput, match=r"metric 'bleu': one of cosine, f1, mse, spearman, top1"):
        metric("bleu")


def test_top1_is_the_accuracy_of_the_largest_score() -> None:
    assert score("top1", SCORES, LABELS) == pytest.approx(accuracy_score(LABELS, SCORES.argmax(axis=1)))
    assert score("top1", SCORES.argmax(axis=1), LABELS) == score("top1", SCORES, LABELS)
    assert score("top1", SCORES, LABELS[:, None]) == score("top1", SCORES, LABELS)
    assert score("top1", SCORES.argmax(axis=1)[:, None], LABELS) == score("top1", SCORES, LABELS)


def test_top1_takes_scores_as_the_right_answers() -> None:
    assert score("top1", SCORES, SCORES + np.float32(0.5)) == 1.0


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("name", ["top1", "f1"])
def test_one_hot_rows_are_class_numbers(name: str, dtype: type) -> None:
    one_hot = np.eye(4, dtype=dtype)
    assert score(name, SCORES, one_hot[LABELS]) == score(name, SCORES, LABELS)
    wrong = one_hot[(LABELS + 1) % 4].astype(np.float32)
    assert score(name, wrong, one_hot[LABELS]) == 0.0, "what is never right has nothing from the zeros that agree"
    tokens, scores = RANDOM.integers(0, 4, (6, 7)), RANDOM.standard_normal((6, 7, 4))
    assert score(name, scores, one_hot[tokens]) == score(name, scores, tokens)


def test_top1_of_every_token() -> None:
    labels, scores = RANDOM.integers(0, 5, (6, 7)), RANDOM.standard_normal((6, 7, 5))
    assert score("top1", scores, labels) == pytest.approx(accuracy_score(labels.ravel(), scores.argmax(axis=2).ravel()))


def test_f1_is_the_macro_average() -> None:
    assert score("f1", SCORES, LABELS) == pytest.approx(f1_score(LABELS, SCORES.argmax(axis=1), average="macro"))


def test_f1_of_two_classes_in_one_column() -> None:
    labels, logits = RANDOM.integers(0, 2, 50), RANDOM.standard_normal(50)
    wanted = f1_score(labels, logits > 0, average="macro")
    assert score("f1", logits[:, None], labels) == pytest.approx(wanted)
    assert score("f1", logits[:, None], labels[:, None]) == pytest.approx(wanted)
    assert score("f1", 1 / (1 + np.exp(-logits)), labels) == pytest.approx(wanted)  # probabilities


def test_spearman_with_ties() -> None:
    a, b = RANDOM.integers(0, 9, 80).astype(np.float32), RANDOM.integers(0, 9, 80).astype(np.float32)
    assert score("spearman", a + b, b) == pytest.approx(spearmanr(a + b, b).statistic)
    assert score("spearman", -b, b) == 0.0
    assert score("spearman", np.ones(80), b) == 0.0


def test_cosine_is_the_mean_over_samples() -> None:
    a, b = RANDOM.standard_normal((9, 2, 3)), RANDOM.standard_normal((9, 2, 3)) + 1
    each = [x.ravel() @ y.ravel() / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    assert score("cosine", a + b, a + b) == pytest.approx(1.0)
    assert score("cosine", a, b) == pytest.approx(max(0.0, float(np.mean(each))))
    assert score("cosine", np.zeros((2, 3)), np.zeros((2, 3))) == 1.0


def test_mse_is_the_share_of_variance_that_is_explained() -> None:
    right = RANDOM.standard_normal((60, 3))
    close = right + 0.3 * RANDOM.standard_normal((60, 3))
    assert score("mse", close, right) == pytest.approx(r2_score(right, close, multioutput="variance_weighted"))
    assert score("mse", right + 9, right) == 0.0


def test_several_outputs_score_their_mean() -> None:
    outputs = {"a": np.array([0, 1]), "b": np.array([1, 1])}
    assert metric("top1").score(outputs, {"a": np.array([0, 1]), "b": np.array([0, 1])}) == pytest.approx(0.75)
    assert metric("top1").score(outputs, {"labels": np.array([0, 1])}) == 1.0  # belong to the first


@pytest.mark.parametrize("name", OWN)
def test_answers_that_are_no_numbers_are_wrong(name: str) -> None:
    right = np.array([[0.0, 1.0], [1.0, 0.0]]) if name in ("cosine", "mse") else np.array([0, 1])
    answers = np.full((2, 2) if name in ("top1", "f1", "cosine", "mse") else 2, np.nan)
    assert score(name, answers, right) == 0.0


@pytest.mark.parametrize(
    ("name", "answers", "right", "words"),
    [
        ("top1", SCORES, LABELS[:9], r"labels shape \[9\]: must have as many samples as the answers of shape \[200, 4\]"),
        ("top1", SCORES, LABELS + 1, r"labels 4: must be a class number from 0 to 3"),
        ("top1", SCORES, LABELS - 1, r"labels -1: must be a class number from 0 to 3"),
        ("top1", SCORES, LABELS / 2, r"labels dtype 'float64': must be class numbers, or scores of shape \[200, 4\]"),
        ("top1", SCORES, np.tile([1, 0, 1, 0], (200, 1)), r"labels \[1, 0, 1, 0\]: must be one-hot, or class numbers of shape \[200\]"),
        ("f1", SCORES, np.tile([0, 2, 0, 0], (200, 1)), r"labels \[0, 2, 0, 0\]: must be one-hot"),
        ("f1", SCORES, np.zeros((200, 4), bool), r"labels \[False, False, False, False\]: must be one-hot"),
        ("top1", SCORES[:, 0], LABELS / 3, r"labels dtype 'float64': must be class numbers$"),
        ("f1", SCORES[:, :1], LABELS[:, None] / 3, r"labels dtype 'float64': must be class numbers$"),
        ("f1", SCORES, np.zeros((200, 2), int), r"labels shape \[200, 2\]: must be \[200\] for scores of \[200, 4\]"),
        ("mse", SCORES, LABELS, r"labels shape \[200\]: must be \[200, 4\]"),
        ("mse", SCORES, np.ones((200, 4)), r"labels 1\.0: is the same for every sample"),
        ("spearman", LABELS, np.ones(200), r"labels 1\.0: is the same for every sample"),
        ("cosine", SCORES, np.full((200, 4), np.inf), r"labels inf: must be finite"),
        ("cosine", SCORES, SCORES.astype(str), r"labels dtype '<U\d+': must be numbers"),
        ("cosine", np.empty((0, 2)), np.empty((0, 2)), r"labels shape \[0, 2\]: must have at least 1 sample"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, answers: Any, right: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        score(name, answers, right)


def test_truth_for_an_unknown_output_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"truth 'other': must be labels or one of out"):
        metric("top1").score({"out": SCORES}, {"other": LABELS})


@given(
    st.sampled_from(["cosine", "mse", "spearman"]),
    arrays(np.float32, (5, 2)),
    arrays(np.float32, (5, 2), elements=st.floats(-8, 8, width=16)),
)
def test_every_score_is_from_0_to_1(name: str, answers: Any, right: Any) -> None:
    try:
        assert 0 <= score(name, answers, right) <= 1
    except InvalidInput as error:
        refusal = str(error)
    else:
        return
    assert "the same for every sample" in refusal


class _Boastful:
    name = "boastful"

    def score(self, outputs: object, truth: object) -> float:
        return 1.5


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("_Boastful", r"metric 'mine' scored 1\.5; a score is from 0 to 1"),
        ("gone", r"tessera.metrics: 'mine' of an unknown package"),
        ("OWN", r"tessera.metrics: 'mine' .* is no factory"),
        ("dict", r"metric 'mine' is a dict, which has no score\(outputs, truth\)"),
    ],
)
def test_a_bad_metric_of_another_package_is_named(monkeypatch: pytest.MonkeyPatch, target: str, words: str) -> None:
    module = "builtins" if target == "dict" else __name__
    monkeypatch.setattr(_plugins, "entry_points", lambda group: [EntryPoint("mine", f"{module}:{target}", "tessera.metrics")])
    with pytest.raises(FailedPrecondition, match=words):
        metric("mine").score({}, {})


def test_an_own_name_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plugins, "entry_points", lambda group: [EntryPoint("f1", f"{__name__}:_Boastful", "tessera.metrics")])
    with pytest.raises(FailedPrecondition, match=r"tessera.metrics: 'f1' is offered by a package"):
        metric("f1")
