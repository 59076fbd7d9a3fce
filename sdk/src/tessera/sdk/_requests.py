"""Requests that both clients send alike, and the defaults that they share."""

from __future__ import annotations

from tessera.api.profiler.v1 import profiler_pb2
from tessera.api.registry.v1 import registry_pb2
from tessera.domain.errors import Internal

NODE_METADATA = "tessera-node"
"""Which node's agent an admin call is for (proto/tessera/api/gateway/v1)."""

LONG_S = 3600.0
"""For streams that follow a job."""


def profile_request(
    trust_domain: str, model: str, version: int | None, variant: str, profile_class: str, quick: bool, again: bool
) -> profiler_pb2.RunProfileRequest:
    return profiler_pb2.RunProfileRequest(
        trust_domain=trust_domain,
        model=model,
        version=version or 0,
        variant=variant,
        profile_class=profile_class,
        quick=quick,
        again=again,
    )


def result_of(last: registry_pb2.JobEvent | None) -> registry_pb2.RegistrationResult:
    """The result that a finished registration carries.

    Raises:
        Internal: the stream ended without one, or the job failed.
    """
    if last is None or not last.HasField("result"):
        raise Internal(f"the registration ended without a result{': ' + last.error if last is not None and last.error else ''}")
    return last.result
