"""The registry's settings: a YAML file, every field also by environment. Checked in full before anything starts."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tessera.config import ServiceConfig
from tessera.registry.core.recipes import DEFAULT_RECIPES

DEFAULT_BUILDERS = ("pytorchcv.model_provider:get_model", "tessera.registry.builders:bert", "tessera.registry.builders:transformer")


class RegistryConfig(ServiceConfig):
    """Addresses are HOST:PORT. `_s` seconds, `_bytes` bytes. One registry per state folder."""

    address: str = "127.0.0.1:8010"
    etcd_endpoints: list[str] = Field(default_factory=lambda: ["127.0.0.1:8090"], min_length=1)
    repository_url: str = Field(
        description="fsspec url of the folder with the blobs, e.g. file:///srv/tessera/repository, s3://bucket/prefix"
    )
    repository_options: dict[str, Any] = Field(default_factory=dict, description="for fsspec, such as endpoint_url for s3://")
    state_folder: str = Field(description="uploads, and what running imports write")
    trust_domains: list[str] = Field(default_factory=lambda: ["default"], min_length=1)
    lease_ttl_s: float = Field(10.0, ge=1.0)
    stop_grace_s: float = Field(2.0, ge=0.0)

    upload_max_files: int = Field(2000, ge=1, le=100_000)
    upload_max_file_bytes: int = Field(32 << 30, ge=1)
    upload_max_total_bytes: int = Field(64 << 30, ge=1)
    upload_keep_s: float = Field(86_400.0, ge=0.0)
    """How long an uploaded file that no job needs is kept, so that registering again sends nothing twice."""

    allowed_builders: list[str] = Field(default_factory=lambda: list(DEFAULT_BUILDERS))
    max_batch: int = Field(32, ge=1, le=4096)
    import_timeout_s: float = Field(1800.0, gt=0.0)
    import_memory_bytes: int = Field(24 << 30, ge=1 << 30)
    import_cpu_s: int = Field(3600, ge=1)
    import_file_bytes: int = Field(64 << 30, ge=1 << 20)
    import_threads: int = Field(0, ge=0, le=1024)
    """Threads that torch computes with during an import; 0: as many as there are cores."""
    import_nice: int = Field(5, ge=0, le=19)
    import_attempts: int = Field(3, ge=1)
    """How often an import that the registry did not survive is tried again."""
    imports_at_once: int = Field(1, ge=1, le=64)

    recipes: list[str] = Field(default_factory=lambda: list(DEFAULT_RECIPES))
    """What is made beside `aten-fp32` and `ort-fp32`, of versions that can gain from it and whose registration names no recipes itself."""
    bake_timeout_s: float = Field(900.0, gt=0.0)
    bake_attempts: int = Field(5, ge=1)
    """How often a node may be lost, or room be lacking, while a variant is baked before it counts as failed."""
    jobs_remembered: int = Field(256, ge=1)
    """Ended jobs whose progress can still be read."""
