"""The states of a job (docs/states/job.md), and what its record remembers."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from tessera.domain.errors import DataCorrupted, FailedPrecondition
from tessera.domain.ids import Digest, ModelName, TrustDomain
from tessera.registry.core.manifest import SourceFile
from tessera.registry.core.source import BuilderCall, Demands, Registration


class JobStep(StrEnum):
    """Where a job is. ENDED and FAILED have no record any more."""

    IMPORTING = "importing"
    STORING = "storing"
    VARIANTS = "variants"
    ENDED = "ended"
    FAILED = "failed"


_NEXT: dict[JobStep, frozenset[JobStep]] = {
    JobStep.IMPORTING: frozenset({JobStep.STORING, JobStep.FAILED}),
    JobStep.STORING: frozenset({JobStep.VARIANTS, JobStep.ENDED, JobStep.IMPORTING, JobStep.FAILED}),  # importing: again after a crash
    JobStep.VARIANTS: frozenset({JobStep.ENDED}),
    JobStep.ENDED: frozenset(),
    JobStep.FAILED: frozenset(),
}


def step(now: JobStep, then: JobStep) -> JobStep:
    """Returns `then`.

    Raises:
        FailedPrecondition: there is no such transition.
    """
    if then not in _NEXT[now]:
        raise FailedPrecondition(f"a job does not go from {now.value} to {then.value}")
    return then


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A registration as the job's record keeps it, so that a restarted registry can do it again."""

    task: str
    dataset: str
    accuracy: float | None
    files: tuple[tuple[str, int, str], ...]
    builder: tuple[str, dict[str, Any], int] | None
    source_digest: str
    attempt: int
    demands: Demands = Demands()
    lossy: bool | None = None


def payload_of(registration: Registration, source_digest: Digest) -> str:
    builder = registration.builder
    return msgspec.json.encode(
        Payload(
            task=registration.task,
            dataset=registration.dataset,
            accuracy=registration.accuracy,
            files=tuple((file.path, file.size_bytes, file.digest) for file in registration.files),
            builder=None if builder is None else (builder.reference, builder.arguments, builder.seed),
            source_digest=source_digest,
            attempt=registration.attempt,
            demands=registration.demands,
            lossy=registration.lossy,
        ),
        order="deterministic",
    ).decode()


def registration_of(trust_domain: TrustDomain, name: ModelName, payload: str) -> tuple[Registration, Digest]:
    """Raises: DataCorrupted when the payload is none."""
    try:
        found = msgspec.json.decode(payload.encode(), type=Payload)
    except msgspec.MsgspecError as error:
        raise DataCorrupted(f"job of model {name}: {error}") from error
    registration = Registration(
        trust_domain=trust_domain,
        name=name,
        task=found.task,
        dataset=found.dataset,
        accuracy=found.accuracy,
        files=tuple(SourceFile(path, size, Digest(digest)) for path, size, digest in found.files),
        builder=None if found.builder is None else BuilderCall(*found.builder),
        attempt=found.attempt,
        demands=found.demands,
        lossy=found.lossy,
    )
    return registration, Digest(found.source_digest)
