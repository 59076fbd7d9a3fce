"""The profiler's settings: a YAML file, every field also by environment. Checked in full before anything starts."""

from __future__ import annotations

from pydantic import Field

from tessera.profiler.batch.config import BatchConfig


class ProfilerConfig(BatchConfig):
    """Addresses are HOST:PORT. `_s` seconds."""

    address: str = "127.0.0.1:8012"
    etcd_endpoints: list[str] = Field(default_factory=lambda: ["127.0.0.1:8090"], min_length=1)
    lease_ttl_s: float = Field(10.0, ge=1.0)

    quick_seconds_per_row: float = Field(1.0, gt=0.0)
    """How long each row is measured at least, in a quick run."""
    full_seconds_per_row: float = Field(3.0, gt=0.0)
    min_repeats: int = Field(5, ge=1)
    group_timeout_s: float = Field(900.0, gt=0.0)
    """How long an agent may take for all batches of one thread count, loading included."""
    stop_grace_s: float = Field(2.0, ge=0.0)
