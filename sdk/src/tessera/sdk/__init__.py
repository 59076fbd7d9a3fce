"""Client library of Tessera: synchronous (`Client`) and asynchronous (`AsyncClient`), numpy in and out.

    with Client() as client:                      # TESSERA_ENDPOINT, else the platform in TESSERA_STATE, else 127.0.0.1:8001
        answer = client.infer("minilm", {"input_ids": ids, "attention_mask": mask})
        answer.outputs["sentence_embedding"]      # numpy
        answer.variant, answer.start_path, answer.request_id

What fails raises the error classes of `tessera.domain.errors`, re-exported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.domain.errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    DataCorrupted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidInput,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TesseraError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from tessera.domain.objectives import Objectives
from tessera.sdk._client import Client
from tessera.sdk._infer import InferResult
from tessera.sdk._requests import BatchOptions, PromotionOptions
from tessera.sdk._source import BuilderModel, DirectoryModel
from tessera.sdk._target import Target, find_target

if TYPE_CHECKING:
    from tessera.sdk._async_client import AsyncClient

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "BatchOptions",
    "BuilderModel",
    "Cancelled",
    "Client",
    "Conflict",
    "DataCorrupted",
    "DeadlineExceeded",
    "DirectoryModel",
    "FailedPrecondition",
    "InferResult",
    "Internal",
    "InvalidInput",
    "NotFound",
    "Objectives",
    "PermissionDenied",
    "PromotionOptions",
    "ResourceExhausted",
    "Target",
    "TesseraError",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "find_target",
]


def __getattr__(name: str) -> Any:
    """The asynchronous client is imported when it is first named: most programs use one of the two."""
    if name == "AsyncClient":
        from tessera.sdk import _async_client

        return _async_client.AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
