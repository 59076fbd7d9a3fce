"""The settings of batch jobs: part of the profiler's."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from tessera.config import ServiceConfig
from tessera.domain.errors import TesseraError
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN
from tessera.profiler.batch.core.locations import location, roots_of


class BatchConfig(ServiceConfig):
    """`_s` seconds, `_bytes` bytes."""

    trust_domains: list[str] = Field(default_factory=lambda: [str(DEFAULT_TRUST_DOMAIN)], min_length=1)
    """Whose batch jobs are worked on."""
    batch_folder: str = ""
    """A folder in which each trust domain has one of its own, by its name, to read from and write to; empty: none."""
    batch_roots: list[str] = Field(default_factory=list)
    """Where batch jobs may read and write besides: folders, or URLs such as s3://bucket/prefix. `{trust_domain}` is the job's."""
    batch_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By protocol, what fsspec gives to its file system, such as {s3: {endpoint_url: ...}}."""
    batch_in_flight: int = Field(1, ge=1, le=16)
    """Requests of a batch job that are under way at a time."""
    batch_share: float = Field(0.8, gt=0.0, le=1.0)
    """How much of the time a request of a batch job is under way: below 0.9, a job alone never makes its instance count as overloaded."""
    batch_part_rows: int = Field(1024, ge=1, le=1_000_000)
    """The most rows of a part, and so what a kill costs."""
    batch_part_bytes: int = Field(16 << 20, ge=1024)
    """The most bytes of answers in a part, as far as the first answers tell."""
    batch_calm_s: float = Field(5.0, ge=0.0, le=3600.0)
    """How long nothing must be overloaded or interfered with before a paused job goes on."""
    batch_request_s: float = Field(60.0, gt=0.0, le=3600.0)
    batch_patience_s: float = Field(600.0, ge=0.0)
    """How long a request, a read or a write that fails for a reason that may pass is tried again before the job fails."""
    batch_queue_limit: int = Field(100, ge=1, le=10_000)
    """Unfinished jobs of a trust domain."""
    batch_kept: int = Field(200, ge=1, le=10_000)
    """Ended jobs of a trust domain that are still known."""

    @field_validator("batch_roots")
    @classmethod
    def _are_locations(cls, roots: list[str]) -> list[str]:
        try:
            roots_of(DEFAULT_TRUST_DOMAIN, "", roots)
        except TesseraError as error:
            raise ValueError(error.message) from None
        return roots

    @field_validator("batch_folder")
    @classmethod
    def _is_a_folder(cls, folder: str) -> str:
        try:
            if folder and location("batch_folder", folder).protocol != "file":
                raise ValueError("must be a local folder; batch_roots may name others")
        except TesseraError as error:
            raise ValueError(error.message) from None
        return folder
