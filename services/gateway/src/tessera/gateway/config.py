"""The gateway's settings."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tessera.config import ServiceConfig
from tessera.rpc import MAX_MESSAGE_BYTES

MIB = 1024 * 1024


class GatewayConfig(ServiceConfig):
    """Every field is also read from `TESSERA_<FIELD>`."""

    told_addresses: ClassVar[tuple[str, ...]] = ("address", "admin_address")

    address: str = Field(default="127.0.0.1:8001", description="Open Inference over gRPC: host:port, port 0 picks one")
    metrics_address: str = Field(default="127.0.0.1:8002", description="Prometheus over HTTP; empty: none")
    admin_address: str = Field(default="127.0.0.1:8003", description="admin API, authenticated; never a public address")
    token_file: Path = Field(description="file with the admin token, readable by its owner only")
    token_file_shared: bool = Field(
        default=False, description="take a token file that others may read, as secrets mounted into containers are"
    )
    etcd_endpoints: list[str] = Field(default=["127.0.0.1:8090"], min_length=1)
    trust_domain: str = "default"
    host_id: str = Field(default="", description="runtimes of this host are reached by their Unix socket; empty: this machine's id")
    gateway_id: str = ""
    reuse_port: bool = Field(default=False, description="let several gateway processes share one port")
    variant_policy: str = Field(default="tessera", description="docs/policies.md: which variant answers")
    instance_policy: str = Field(default="two-choices", description="docs/policies.md: which of its instances")
    default_budget_s: float = Field(default=60.0, gt=0, le=3600, description="time for a request whose client sets no deadline")
    start_budget_s: float = Field(default=60.0, gt=0, le=3600, description="how long a start is asked for before its requests are told")
    start_queue_limit: int = Field(default=256, ge=1, le=1_000_000, description="requests that may wait for one variant to start")
    max_message_bytes: int = Field(
        default=MAX_MESSAGE_BYTES, ge=1024, le=MAX_MESSAGE_BYTES, description="of a request or an answer; runtimes take 64 MiB and no more"
    )
    held_bytes_limit: int = Field(default=1024 * MIB, ge=1024, description="bytes of unanswered requests held at a time")
    explain_ring_size: int = Field(default=8192, ge=1, le=1_000_000, description="requests that explain still knows")
    drain_grace_s: float = Field(default=10.0, ge=0, le=600)
    session_ttl_s: float = Field(default=10.0, ge=2, le=600)
