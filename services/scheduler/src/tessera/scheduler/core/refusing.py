"""From a decision without a choice to the error that says so."""

from __future__ import annotations

from collections.abc import Mapping

from tessera.domain.errors import FailedPrecondition, ResourceExhausted, TesseraError, Unavailable, error_of
from tessera.policy.placement.filters import RefusalKind
from tessera.policy.start.base import OptionKey, StartDecision


def refused(decision: StartDecision, failures: Mapping[OptionKey, TesseraError]) -> TesseraError:
    """The agents' own last error where something was tried; else by what every node lacks. The message always counts the refusals."""
    if failures:
        (variant, node_id, path), error = list(failures.items())[-1]
        return error_of(error.kind, f"start of {variant} on {node_id} by {path} failed: {error.message} ({decision.explanation})")
    full = any(refusal.kind is RefusalKind.STORE for refusal in decision.refusals)
    passing = any(refusal.may_pass and refusal.kind is not RefusalKind.STORE for refusal in decision.refusals)
    if decision.may_pass and (passing or not full):
        return Unavailable(f"no node can start it now: {decision.explanation}")
    if full:
        return ResourceExhausted(f"no node has room: {decision.explanation}")
    return FailedPrecondition(f"no node can start it: {decision.explanation}")
