"""A decision in the words of the admin API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import chain

from tessera.api.gateway.v1 import gateway_pb2
from tessera.domain.objectives import Objectives
from tessera.domain.records import LoadState
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.decisions import Decision
from tessera.gateway.core.routes import Name, Route
from tessera.gateway.core.slots import InstanceSlot
from tessera.policy.instance.base import completion_ms
from tessera.policy.variant.account import Account, accounts
from tessera.policy.variant.base import Candidate, Choice
from tessera.wire import encode_stage_times, encode_variant_key

UNKNOWN = -1.0
"""On the wire: nobody measured."""


def of_decision(catalogue: Catalogue, decision: Decision) -> gateway_pb2.ExplainResponse:
    """Why a request went where it went, and what came of it."""
    answer = _of_choice(catalogue, decision.route, decision.choice)
    answer.request_id = decision.request_id
    answer.model = decision.route.name.shown if decision.route is not None else decision.model
    answer.node_id = decision.node_id
    answer.instance_id = decision.instance_id
    answer.start_path = decision.start_path
    answer.stages.extend(encode_stage_times(decision.all_stages()))
    answer.predicted_ms = decision.predicted_ms
    answer.actual_ms = decision.actual_ms
    answer.outcome = decision.outcome
    return answer


def of_model(catalogue: Catalogue, route: Route) -> gateway_pb2.ExplainResponse:
    """Where a request would go now."""
    choice = catalogue.choose(route)
    answer = _of_choice(catalogue, route, choice)
    answer.model = route.name.shown
    if choice is None:
        answer.outcome = f"failed_precondition: {catalogue.refusal(route)}"
        return answer
    answer.predicted_ms = choice.predicted_ms or 0.0
    if isinstance(choice.instance, InstanceSlot):
        answer.node_id, answer.instance_id = choice.instance.node_id, choice.instance.instance_id
    return answer


def _of_choice(catalogue: Catalogue, route: Route | None, choice: Choice | None) -> gateway_pb2.ExplainResponse:
    if route is None:
        return gateway_pb2.ExplainResponse()
    refused = chain(route.refused(catalogue.classes), _newer(catalogue, route.name))
    found = accounts(catalogue.policy, route.ranking, route.objectives, choice, refused)
    return gateway_pb2.ExplainResponse(
        variants=[_option(catalogue, one, choice) for one in found],
        variant_policy=catalogue.policy.name,
        instance_policy=catalogue.instances.name,
        objectives=_words(route.objectives),
        objective_missed=route.missed(choice) if choice is not None else "",
        snapshot=route.snapshot,
    )


def _newer(catalogue: Catalogue, name: Name) -> Iterator[tuple[Candidate, str]]:
    """Of a name that says no version: why the variants of newer versions than the one that it stands for cannot answer now."""
    version = name.version if name.follows else None
    model = catalogue.models.get(version.model) if version is not None else None
    if version is None or model is None:
        return
    for number in catalogue.versions.get(model.name, ()):
        if version.version < number <= model.latest:
            yield from catalogue.route(model.name, str(number)).refused(catalogue.classes)


def _option(catalogue: Catalogue, one: Account, choice: Choice | None) -> gateway_pb2.VariantOption:
    candidate = one.candidate
    slots = catalogue.fleet.slots_of(candidate.key)
    return gateway_pb2.VariantOption(
        variant=encode_variant_key(candidate.key),
        expected_ms=_known(one.expected_ms),
        active_instances=len(candidate.activity.instances),
        chosen=one.chosen,
        reason=one.reason,
        latency_ms=_known(candidate.latency_ms),
        load_ms=_known(candidate.load_ms),
        accuracy=candidate.accuracy.value,
        accuracy_source=candidate.accuracy.source.value,
        usd_per_1000=_known(candidate.usd_per_1000),
        work_ms=_known(candidate.work_ms),
        load_state=_load_state(slots),
        instances=[_instance(slot, one, choice) for slot in slots],
    )


def _instance(slot: InstanceSlot, one: Account, choice: Choice | None) -> gateway_pb2.InstanceOption:
    """An instance as the decision saw it where it looked at it, else as it is now."""
    looked = one.looked if one.looked is not None and one.looked.instance is slot else None
    return gateway_pb2.InstanceOption(
        node_id=slot.node_id,
        instance_id=slot.instance_id,
        in_flight=looked.in_flight if looked is not None else slot.in_flight,
        expected_ms=_known(looked.expected_ms if looked is not None else completion_ms(slot)),
        load_state=slot.load_state.value,
        chosen=choice is not None and choice.instance is slot,
        then=looked is not None,
    )


def _load_state(slots: tuple[InstanceSlot, ...]) -> str:
    """Of the variant: as its best instance."""
    states = {slot.load_state for slot in slots}
    best = (LoadState.ACTIVE, LoadState.INTERFERED, LoadState.OVERLOADED)
    return next((state for state in best if state in states), LoadState.INACTIVE).value


def _words(objectives: Objectives) -> str:
    """ "latency_ms=20, strict": what was asked for."""
    said = [(each.name, getattr(objectives, each.name)) for each in fields(objectives)]
    return ", ".join(name if value is True else f"{name}={value}" for name, value in said if value not in (None, "", False))


def _known(value: float | None) -> float:
    return UNKNOWN if value is None else value
