"""Error kind <-> gRPC status. The kind travels as trailing metadata; a status without one (a foreign peer) maps by its code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import grpc
import grpc.aio

from tessera.domain.errors import TesseraError, error_of

KIND_METADATA = "tessera-error-kind"
_MAX_ENCODED_BYTES = 4096
"""The message travels percent-encoded in a header, and headers beyond 8 KiB are refused by default."""

Code = grpc.StatusCode

_CODES: dict[str, grpc.StatusCode] = {
    "invalid_input": Code.INVALID_ARGUMENT,
    "not_found": Code.NOT_FOUND,
    "already_exists": Code.ALREADY_EXISTS,
    "failed_precondition": Code.FAILED_PRECONDITION,
    "stale_term": Code.FAILED_PRECONDITION,
    "conflict": Code.ABORTED,
    "resource_exhausted": Code.RESOURCE_EXHAUSTED,
    "too_large": Code.RESOURCE_EXHAUSTED,
    "unavailable": Code.UNAVAILABLE,
    "wrong_generation": Code.UNAVAILABLE,
    "deadline_exceeded": Code.DEADLINE_EXCEEDED,
    "cancelled": Code.CANCELLED,
    "unsupported": Code.UNIMPLEMENTED,
    "unauthenticated": Code.UNAUTHENTICATED,
    "permission_denied": Code.PERMISSION_DENIED,
    "data_corrupted": Code.DATA_LOSS,
    "internal": Code.INTERNAL,
}

_KINDS: dict[grpc.StatusCode, str] = {
    Code.INVALID_ARGUMENT: "invalid_input",
    Code.OUT_OF_RANGE: "invalid_input",
    Code.NOT_FOUND: "not_found",
    Code.ALREADY_EXISTS: "already_exists",
    Code.FAILED_PRECONDITION: "failed_precondition",
    Code.ABORTED: "conflict",
    Code.RESOURCE_EXHAUSTED: "resource_exhausted",
    Code.UNAVAILABLE: "unavailable",
    Code.DEADLINE_EXCEEDED: "deadline_exceeded",
    Code.CANCELLED: "cancelled",
    Code.UNIMPLEMENTED: "unsupported",
    Code.UNAUTHENTICATED: "unauthenticated",
    Code.PERMISSION_DENIED: "permission_denied",
    Code.DATA_LOSS: "data_corrupted",
}


def status_of(error: TesseraError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Code, message and trailing metadata of an error. The message is cut where a header could not carry it."""
    kind = error.kind if error.kind in _CODES else "internal"
    return _CODES[kind], shortened(str(error)), ((KIND_METADATA, kind),)


def shortened(message: str) -> str:
    """At most 4 KiB when percent-encoded; what was cut shows as "..."."""
    room = _MAX_ENCODED_BYTES
    for position, character in enumerate(message):
        room -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode("utf-8", "replace"))
        if room < 0:
            return message[:position] + "..."
    return message


def error_of_status(code: grpc.StatusCode, message: str, metadata: Iterable[tuple[str, Any]]) -> TesseraError:
    """The domain error of a status that came over the wire."""
    kind = next((str(value) for key, value in metadata if key == KIND_METADATA), "")
    if kind not in _CODES:
        kind = _KINDS.get(code, "internal")
        # gRPC's own words, from the side that refused: sending it again does not help, which "resource exhausted" would suggest.
        if code is Code.RESOURCE_EXHAUSTED and "message larger than max" in message:
            kind = "too_large"
    return error_of(kind, message or code.name.lower().replace("_", " "))


def error_of_rpc(error: grpc.RpcError) -> TesseraError:
    """The domain error of what a gRPC call raised (the plain library's, for who calls it without `connect`)."""
    metadata: Iterable[tuple[str, Any]] = error.trailing_metadata() or ()  # type: ignore[assignment] # pairs, in both libraries
    return error_of_status(error.code(), error.details() or "", metadata)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: TesseraError) -> NoReturn:
    """Ends the call of `context` with the status of `error`. For handlers that the server leaves as they are."""
    code, message, metadata = status_of(error)
    await context.abort(code, message, metadata)
