"""The parts of a ModelInferRequest that are the gateway's business, and the parameters it adds to a reply."""

from __future__ import annotations

from tessera.domain.errors import InvalidInput
from tessera.domain.objectives import NAMES, NO_OBJECTIVES, Objectives, objectives_of
from tessera.frames.openinference import Parameters, encode_parameters
from tessera.gateway.core.slots import InstanceSlot

OWN_PREFIX = "tessera_"
MAX_QUEUE_BUDGET_S = 24 * 3600.0
MAX_REMEMBERED = 4096

_OBJECTIVES = frozenset(NAMES)

_ID_HEAD = encode_parameters({"request_id": "0" * 32})[:-32]
"""All of the encoded parameter `request_id` but its 32 characters, which are always that many."""


def queue_budget_s(parameters: Parameters) -> float | None:
    """What the parameter `timeout` (microseconds, Triton's) allows for waiting, in seconds; None or 0: nothing said.

    Raises:
        InvalidInput: `timeout` is no whole number or negative; a parameter in our own namespace that does not exist (a misspelt
            objective must not be ignored). Every other name passes untouched.
    """
    if not parameters:
        return None
    for name in parameters:
        if name.startswith(OWN_PREFIX):
            raise InvalidInput(f"parameter {name[:80]}", None, f"unknown; no parameter that starts with {OWN_PREFIX!r} is defined")
    timeout = parameters.get("timeout")
    if timeout is None and "timeout" not in parameters:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise InvalidInput("parameter timeout", timeout, "must be a whole number of microseconds, at least 0")
    return min(timeout / 1e6, MAX_QUEUE_BUDGET_S) if timeout else None


class AskedFor:
    """What requests say about objectives, remembered by what they said: clients ask for the same again and again."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Objectives] = {}

    def objectives(self, parameters: Parameters) -> Objectives:
        """Raises: InvalidInput, as `objectives_of`."""
        if _OBJECTIVES.isdisjoint(parameters):
            return NO_OBJECTIVES
        said = tuple([(name, value.__class__, value) for name, value in parameters.items() if name in _OBJECTIVES])
        found = self._known.get(said)
        if found is None:
            found = objectives_of(parameters)
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[said] = found
        return found


def reply_prefix(slot: InstanceSlot, start_path: str, name_model: bool = False) -> bytes:
    """Encoded reply parameters `variant`, `node`, `start_path`, `request_id`, but the id itself (32 hex digits), which goes behind:
    appended to an encoded response they join its own. `name_model`: also `model`, MODEL@VERSION, which the request did not name.
    """
    prefix = slot.reply_prefixes.get((start_path, name_model))
    if prefix is None:
        known = {"variant": str(slot.variant.variant), "node": str(slot.node_id), "start_path": start_path}
        if name_model:
            known["model"] = str(slot.variant.version_key)
        prefix = slot.reply_prefixes[start_path, name_model] = encode_parameters(known) + _ID_HEAD
    return prefix


def missed_parameter(missed: str) -> bytes:
    """The encoded reply parameter `objective_missed`: which objectives the answer was expected to miss, and by how much."""
    return encode_parameters({"objective_missed": missed})
