"""Two ways to ask a platform for the same thing: with the SDK and with tritonclient. Each raises `Failed` with a kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from e2e_platform import Platform

from tessera.sdk import Client, TesseraError


class Failed(Exception):
    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind = kind


@contextmanager
def open_sdk(platform: Platform) -> Iterator[Client]:
    with platform.client() as client:
        yield client


def ask_sdk(client: Client, reference: str, given: np.ndarray) -> tuple[np.ndarray, str]:
    try:
        answer = client.infer(reference, {"x": given}, timeout_s=30)
    except TesseraError as error:
        raise Failed(error.kind, str(error)) from error
    (output,) = answer.outputs.values()
    return output, answer.start_path


@contextmanager
def open_triton(platform: Platform) -> Iterator[Any]:
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(platform.endpoint) as client:
        yield client


_KINDS = {"StatusCode.UNAVAILABLE": "unavailable", "StatusCode.RESOURCE_EXHAUSTED": "resource_exhausted",
          "StatusCode.DEADLINE_EXCEEDED": "deadline_exceeded", "StatusCode.CANCELLED": "cancelled",
          "StatusCode.FAILED_PRECONDITION": "failed_precondition", "StatusCode.ABORTED": "wrong_generation"}  # fmt: skip


def ask_triton(client: Any, reference: str, given: np.ndarray) -> tuple[np.ndarray, str]:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    model, _, version = reference.partition("@")
    asked = triton.InferInput("x", list(given.shape), "FP32")
    asked.set_data_from_numpy(given)
    try:
        answer = client.infer(f"{model}@{version}", [asked], client_timeout=30)
    except InferenceServerException as error:
        raise Failed(_KINDS.get(error.status(), str(error.status())), error.message()) from error
    response = answer.get_response()
    return answer.as_numpy(response.outputs[0].name), response.parameters["start_path"].string_param
