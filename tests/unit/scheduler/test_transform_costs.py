"""What transformations are expected to take: as measured on the class, else as assumed, and as starts took on it."""

from __future__ import annotations

import pytest

from tessera.domain.ids import Digest, ProfileClass, TrustDomain
from tessera.domain.records import MetaCostLine
from tessera.domain.transformation import MetaOperator, StepSum
from tessera.policy.transform.costs import REPLACED, MetaCosts
from tessera.policy.transform.fitting import LEAST_OBSERVATIONS
from tessera.scheduler.core import transform_costs
from tessera.scheduler.core.start_times import FORGET_S
from tessera.scheduler.core.transform_costs import NOT_MEASURED, TransformCosts
from tessera.testing.builders import a_meta_cost_record

HERE, THERE = ((TrustDomain("default"), ProfileClass(name), "aten") for name in ("here", "there"))
PAIR = (Digest("1" * 64), Digest("2" * 64))
STEPS = (StepSum(MetaOperator.ADD, "aten.linear.default", 3, 1 << 20), StepSum(MetaOperator.ADD, "aten.relu.default", 10))
RECORD = a_meta_cost_record()
MEASURED_MS = 1.5 + 3 * 0.05 + 0.1 + 10 * 0.03


def test_what_was_measured_counts_and_what_was_not_is_assumed() -> None:
    costs = TransformCosts()
    assert costs.ms(HERE, None, PAIR, STEPS) == pytest.approx(MetaCosts().ms(STEPS))
    assert costs.ms(HERE, RECORD, PAIR, STEPS) == pytest.approx(MEASURED_MS), "measured meanwhile"
    assert costs.ms(THERE, None, PAIR, STEPS) == pytest.approx(MetaCosts().ms(STEPS))
    assert costs.ms(HERE, None, PAIR, STEPS) == pytest.approx(MetaCosts().ms(STEPS)), "the record is gone"


def test_enough_starts_correct_what_was_measured_on_their_class_alone() -> None:
    costs = TransformCosts()
    for _ in range(LEAST_OBSERVATIONS - 1):
        costs.note(HERE, RECORD, STEPS, 3 * MEASURED_MS, 0.0)
    assert costs.ms(HERE, RECORD, PAIR, STEPS) == pytest.approx(MEASURED_MS)
    costs.note(HERE, RECORD, STEPS, 3 * MEASURED_MS, 0.0)
    assert costs.ms(HERE, RECORD, PAIR, STEPS) == pytest.approx(3 * MEASURED_MS)
    assert costs.ms(HERE, RECORD, (PAIR[1], PAIR[0]), ()) == pytest.approx(4.5)
    assert costs.ms(THERE, RECORD, PAIR, STEPS) == pytest.approx(MEASURED_MS)


def test_a_class_that_is_measured_again_is_corrected_as_before() -> None:
    costs = TransformCosts()
    for _ in range(LEAST_OBSERVATIONS):
        costs.note(HERE, RECORD, STEPS, 2 * MEASURED_MS, 0.0)
    again = a_meta_cost_record(base_ms=0.5, lines=(MetaCostLine(MetaOperator.ADD, "", 0.01),))
    assert costs.ms(HERE, again, PAIR, STEPS) == pytest.approx(2 * MEASURED_MS)


def test_corrections_wear_off_where_nothing_is_transformed_any_more() -> None:
    """Else costs that were high for a moment are never seen to be lower again."""
    costs = TransformCosts()
    for place, at_s in ((HERE, 0.0), (THERE, 1.0)):
        for _ in range(LEAST_OBSERVATIONS):
            costs.note(place, RECORD, STEPS, 2 * MEASURED_MS, at_s)
    costs.forget(FORGET_S)
    assert costs.ms(HERE, RECORD, PAIR, STEPS) == pytest.approx(MEASURED_MS)
    assert costs.ms(THERE, RECORD, PAIR, STEPS) == pytest.approx(2 * MEASURED_MS)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform_costs, "KEPT_SUMS", 4)
    costs = TransformCosts()
    for number in range(20):
        costs.ms(HERE, RECORD, (PAIR[0], Digest(f"{number:064x}")), STEPS)
    for _ in range(2 * transform_costs.WINDOW):
        costs.note(HERE, RECORD, STEPS, 9.0, 0.0)
    found = costs._classes[HERE]
    assert len(found._sums) <= 4
    assert len(found._seen) == transform_costs.WINDOW
    for _ in range(transform_costs.WINDOW):
        costs.note(HERE, RECORD, STEPS, MEASURED_MS, 0.0)
    assert costs.ms(HERE, RECORD, PAIR, STEPS) == pytest.approx(MEASURED_MS), "what was is forgotten"


def test_a_backend_whose_sessions_get_other_weights_is_corrected_by_itself() -> None:
    session = (*HERE[:2], "ort")
    steps = (StepSum(MetaOperator.REPLACE, "ort-fp32", 1, 10 << 20),)
    costs = TransformCosts()
    assumed_ms = costs.ms(session, None, PAIR, steps)
    assert assumed_ms == pytest.approx(NOT_MEASURED.base_ms + REPLACED["ort-fp32"].ms(10 << 20))
    for _ in range(LEAST_OBSERVATIONS):
        costs.note(session, None, steps, 2 * assumed_ms, 0.0)
    assert costs.ms(session, None, PAIR, steps) == pytest.approx(2 * assumed_ms)
    assert costs.ms(HERE, None, PAIR, STEPS) == pytest.approx(MetaCosts().ms(STEPS))
