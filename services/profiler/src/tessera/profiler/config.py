"""The profiler's settings: a YAML file, every field also by environment. Checked in full before anything starts."""

from __future__ import annotations

from pydantic import Field

from tessera.profiler.batch.config import BatchConfig


class ProfilerConfig(BatchConfig):
    """Addresses are HOST:PORT. `_s` seconds."""

    address: str = "127.0.0.1:8012"
    etcd_endpoints: list[str] = Field(default_factory=lambda: ["127.0.0.1:8090"], min_length=1)
    lease_ttl_s: float = Field(10.0, ge=1.0)

    quick_seconds_per_row: float = Field(1.0, gt=0.0, le=300.0)
    """How long each row is measured at most, in a quick run; sooner when its spread is small."""
    full_seconds_per_row: float = Field(3.0, gt=0.0, le=300.0)
    min_repeats: int = Field(5, ge=1)
    spread: float = Field(0.02, ge=0.0, le=1.0)
    """A row with this spread (standard error of the mean over the mean) is not repeated further."""
    variant_budget_s: float = Field(60.0, gt=0.0)
    """How long a run measures one variant on one profile class."""
    latency_cap_ms: float = Field(2000.0, gt=0.0)
    """Batches that take longer are not measured."""
    private_cap_bytes: int = Field(2 << 30, gt=0)
    """Nor are batches after one that needed more private memory."""
    row_timeout_s: float = Field(900.0, gt=0.0)
    """How long an agent may take for one row, the time in which requests keep it from measuring included."""
    stop_grace_s: float = Field(2.0, ge=0.0)
