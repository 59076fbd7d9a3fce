"""The parts of a ModelInferRequest that are the gateway's business, and the parameters it adds to a reply."""

from __future__ import annotations

from tessera.domain.errors import InvalidInput
from tessera.frames.openinference import Parameters, encode_parameters
from tessera.gateway.core.slots import InstanceSlot

OWN_PREFIX = "tessera_"
MAX_QUEUE_BUDGET_S = 24 * 3600.0

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


def reply_prefix(slot: InstanceSlot, start_path: str) -> bytes:
    """Encoded reply parameters `variant`, `node`, `start_path`, `request_id`, but the id itself (32 hex digits), which goes behind:
    appended to an encoded response they join its own.
    """
    prefix = slot.reply_prefixes.get(start_path)
    if prefix is None:
        known = {"variant": str(slot.variant.variant), "node": str(slot.node_id), "start_path": start_path}
        prefix = slot.reply_prefixes[start_path] = encode_parameters(known) + _ID_HEAD
    return prefix
