"""What bounds batch jobs; the settings' meaning stands in `config`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchLimits:
    in_flight: int = 1
    share: float = 0.8
    part_rows: int = 1024
    part_bytes: int = 16 << 20
    calm_s: float = 5.0
    request_s: float = 60.0
    patience_s: float = 600.0
    queue_limit: int = 100
    kept: int = 200
    check_s: float = 30.0
