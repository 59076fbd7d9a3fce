"""Requests sent when they are due, whatever became of those before: what users do, who know nothing of each other.

Bodies are encoded beforehand and answers are not decoded beyond their parameters: the client runs on the same cores as the platform. A
latency counts from the moment at which the request was due, so that a client that is late hides nothing; `lag_ms` says how late it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.arrivals import Arrival
from tessera.api.open_inference import inference_pb2 as oip
from tessera.domain.errors import TesseraError
from tessera.rpc import connect
from tessera.sdk._infer import MODEL_INFER

PATIENCE = 4.0
"""After so many times the latency that it asked for a client gives up."""


@dataclass(frozen=True)
class Form:
    """One kind of request: to whom, with which objective, and all of its bytes."""

    asked: str
    objective: str
    latency_ms: float
    body: bytes


@dataclass(frozen=True)
class Answer:
    """`error`: a kind of `tessera.domain.errors`, "" where there was an answer; `missed`: its parameter `objective_missed`."""

    form: Form
    latency_ms: float
    lag_ms: float
    error: str = ""
    served_by: str = ""
    start_path: str = ""
    missed: str = ""


async def send(address: str, forms: Sequence[Form], schedule: Sequence[Arrival]) -> list[Answer]:
    """Returns when every request was answered, refused or given up. In the order of the schedule."""
    async with connect(address) as channel:
        call: Any = channel.unary_unary(MODEL_INFER)
        began_s = time.perf_counter()

        async def ask(form: Form, due_s: float) -> Answer:
            lag_ms = (time.perf_counter() - due_s) * 1e3
            try:
                answer = oip.ModelInferResponse.FromString(await call(form.body, timeout=PATIENCE * form.latency_ms / 1e3))
            except TesseraError as error:
                return Answer(form, (time.perf_counter() - due_s) * 1e3, lag_ms, error.kind)
            took_ms = (time.perf_counter() - due_s) * 1e3
            said = {name: value.string_param for name, value in answer.parameters.items()}
            served_by = f"{said.get('model', answer.model_name).partition('@')[0]}/{said['variant']}"
            return Answer(form, took_ms, lag_ms, "", served_by, said["start_path"], said.get("objective_missed", ""))

        async with asyncio.TaskGroup() as group:
            asked = []
            for each in schedule:
                due_s = began_s + each.at_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                asked.append(group.create_task(ask(forms[each.form], due_s)))
    return [each.result() for each in asked]
