"""Who may answer at all. This holds whatever a policy says: none ever sees a candidate that is refused here."""

from __future__ import annotations

from tessera.domain.objectives import Objectives
from tessera.domain.records import ModelRecord, VariantRecord, VariantState
from tessera.policy.variant.base import Candidate

AGREEING_PRECISIONS = frozenset({"fp32", "any", ""})
"""Of builds that nobody compared: within `max|a-b| <= 1e-4 * max(1, max|b|)` of the registered model. "any" passes its input through."""


def is_lossy(record: VariantRecord) -> bool:
    """Its answers may differ from the registered model's by more than 1e-4, or nobody knows that they do not."""
    return record.lossy or (record.agreement is None and record.precision not in AGREEING_PRECISIONS)


def is_plain(record: VariantRecord, model: ModelRecord | None) -> bool:
    """Its answers are the registered model's, or differ with the model's consent."""
    return not is_lossy(record) or (model is not None and model.lossy)


def never(record: VariantRecord) -> str:
    """Why it may not even answer who names it; "" when it may."""
    if record.state is VariantState.READY:
        return ""
    return f"{record.state.value}{': ' + record.reason if record.reason else ''}"


def refusal(candidate: Candidate, objectives: Objectives, named: bool) -> str:
    """Why it may not answer this request; "" when it may. `named`: the user wrote MODEL@VERSION/VARIANT."""
    if candidate.refusal or named:
        return candidate.refusal
    record = candidate.record
    if record.withheld:
        return f"withheld: {record.withheld}; it must be named to be used"
    if not candidate.plain and objectives.min_accuracy is None:
        return f"{record.precision} may differ from the registered model: it needs min_accuracy, its model's consent, or to be named"
    return ""


def is_permitted(candidate: Candidate, *, lossy_too: bool, named: bool) -> bool:
    """The same as a question of yes or no. `lossy_too`: the request says what accuracy it needs."""
    if candidate.refusal or named:
        return not candidate.refusal
    return (candidate.plain or lossy_too) and not candidate.record.withheld
