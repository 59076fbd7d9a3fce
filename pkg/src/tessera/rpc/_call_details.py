"""What every outgoing call carries besides its message: the token and the trace context."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tessera.domain.errors import InvalidInput

_MAX_TOKEN_CHARS = 4096


def checked_token(token: str | None) -> str | None:
    """Raises: InvalidInput when a header cannot carry it. The token itself is not shown."""
    if token is not None and (not token or len(token) > _MAX_TOKEN_CHARS or not token.isascii() or not token.isprintable()):
        raise InvalidInput("token", None, f"must be 1 to {_MAX_TOKEN_CHARS} printable ASCII characters")
    return token


def metadata_of(given: Iterable[tuple[str, Any]] | None, token: str | None) -> list[tuple[str, Any]]:
    """The caller's metadata, then ours where the caller did not say it."""
    metadata = list(given or ())
    names = {key for key, _ in metadata}
    if token is not None and "authorization" not in names:
        metadata.append(("authorization", f"Bearer {token}"))
    # Nobody has opened a span where telemetry was never imported, which a client need not pay for.
    telemetry = sys.modules.get("tessera.telemetry")
    if telemetry is not None and "traceparent" not in names and (context := telemetry.current_context()) is not None:
        metadata.append(("traceparent", telemetry.format_traceparent(context)))
    return metadata
