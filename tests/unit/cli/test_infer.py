"""What `tessera infer` makes of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tessera.cli.__main__ import app
from tessera.cli.commands import infer
from tessera.sdk import InferResult


class FakeClient:
    def __init__(self, outputs: Mapping[str, Any]) -> None:
        self.outputs = dict(outputs)
        self.inputs: list[Mapping[str, Any]] = []

    def infer(self, model: str, inputs: Mapping[str, Any], **_options: Any) -> InferResult:
        self.inputs.append(inputs)
        return InferResult(self.outputs, model, "1", "ort-fp32", "n1", "bind", "ab" * 16)


def asked(monkeypatch: pytest.MonkeyPatch, outputs: Mapping[str, Any], *words: str) -> tuple[FakeClient, Result]:
    client = FakeClient(outputs)
    monkeypatch.setattr(infer, "connect", lambda *_: nullcontext(client))
    return client, CliRunner().invoke(app, ["infer", "net", "-o", "json", *words])


def test_texts_of_json_go_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = asked(monkeypatch, {}, "-i", 'text=["a\\u0000", "b"]', "-i", "x=[1.5]")
    (inputs,) = client.inputs
    assert inputs["text"] == ["a\0", "b"]
    assert inputs["x"].dtype == np.float32
