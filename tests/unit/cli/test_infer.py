"""What `tessera infer` makes of its inputs, and where it saves outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
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


def test_every_output_has_a_file_of_its_own_in_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outputs = {name: np.array([n]) for n, name in enumerate(["y", "/model/out/Add_0", "../../y", "a/b", "a%2Fb"])}
    _, result = asked(monkeypatch, outputs, "--save", str(tmp_path / "new" / "out"))
    assert (result.exit_code, result.stderr) == (0, "")
    saved = {path.name: int(np.load(path)[0]) for path in tmp_path.rglob("*") if path.is_file()}
    assert saved == {"y.npy": 0, "%2Fmodel%2Fout%2FAdd_0.npy": 1, "..%2F..%2Fy.npy": 2, "a%2Fb.npy": 3, "a%252Fb.npy": 4}
    assert {path.parent for path in tmp_path.rglob("*.npy")} == {tmp_path / "new" / "out"}


def test_texts_are_not_saved_and_all_else_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outputs = {"words": np.array([b"a"], dtype=object), "y": np.array([1])}
    _, result = asked(monkeypatch, outputs, "--save", str(tmp_path))
    assert (result.exit_code, result.stderr) == (1, "error: output words: .npy holds no texts; they stand in --output json and yaml\n")
    assert json.loads(result.stdout)["outputs"]["words"]["data"] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["y.npy"]


def test_a_folder_that_cannot_be_made_is_named_before_anybody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    client, result = asked(monkeypatch, {"y": np.array([1])}, "--save", str(tmp_path / "file"))
    assert (result.exit_code, result.stderr) == (2, f"error: --save '{tmp_path / 'file'}': cannot be made: File exists\n")
    assert client.inputs == []


def test_a_file_that_cannot_be_written_is_named_and_the_answer_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "y.npy").mkdir()
    _, result = asked(monkeypatch, {"y": np.array([1])}, "--save", str(tmp_path))
    assert (result.exit_code, result.stderr) == (2, f"error: --save '{tmp_path / 'y.npy'}': cannot be written: Is a directory\n")
    assert json.loads(result.stdout)["outputs"]["y"]["data"] == [1]


def test_texts_of_json_go_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = asked(monkeypatch, {}, "-i", 'text=["a\\u0000", "b"]', "-i", "x=[1.5]")
    (inputs,) = client.inputs
    assert inputs["text"] == ["a\0", "b"]
    assert inputs["x"].dtype == np.float32
