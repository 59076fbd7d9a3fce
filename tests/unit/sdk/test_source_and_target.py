from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import blake3
import pytest

from tessera.api.registry.v1 import registry_pb2
from tessera.domain.errors import FailedPrecondition, Internal, InvalidInput, NotFound
from tessera.sdk._requests import result_of
from tessera.sdk._source import (
    CHUNK_BYTES,
    BuilderModel,
    Demands,
    DirectoryModel,
    Sets,
    chunks,
    files_of,
    local_files,
    register_request,
    sets_of,
    source_of,
)
from tessera.sdk._target import Target, find_target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "inner").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "inner" / "weights.safetensors").write_bytes(bytes(range(256)) * 5000)
    (made / "empty").touch()
    (made / ".git").mkdir()
    (made / ".git" / "HEAD").write_text("ref")
    (made / "__pycache__").mkdir()
    (made / "__pycache__" / "x.pyc").write_text("")
    return made


def test_files_are_named_relatively_and_hashed(folder: Path) -> None:
    files = {file.wire.path: file.wire for file in files_of(folder)}
    assert list(files) == ["config.json", "empty", "inner/weights.safetensors"]
    weights = files["inner/weights.safetensors"]
    assert weights.size_bytes == 1_280_000
    assert weights.digest == blake3.blake3(bytes(range(256)) * 5000).hexdigest()


def test_links_may_stay_inside_but_not_leave(folder: Path, tmp_path: Path) -> None:
    (folder / "same.json").symlink_to(folder / "config.json")
    assert {file.wire.path for file in files_of(folder)} >= {"same.json", "config.json"}
    (tmp_path / "secret").write_text("s")
    (folder / "leak").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match="'leak': is a link that leaves"):
        files_of(folder)


def test_nothing_to_send(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no files"):
        files_of(tmp_path)


def test_a_path_or_a_builder(folder: Path) -> None:
    assert source_of(folder) == DirectoryModel(folder)
    assert source_of("pytorchcv.model_provider:get_model", {"name": "resnet18"}, 7) == BuilderModel(
        "pytorchcv.model_provider:get_model", {"name": "resnet18"}, 7
    )
    for text in ("no/such/folder", "a b:c", "x:", "models/x:y"):
        with pytest.raises(NotFound, match="neither a path"):
            source_of(text)
    with pytest.raises(InvalidInput, match="apply to a builder reference"):
        source_of(folder, seed=1)


def test_the_upload_holds_each_missing_file_once_in_chunks(folder: Path) -> None:
    (folder / "copy.safetensors").write_bytes((folder / "inner" / "weights.safetensors").read_bytes())
    files = files_of(folder)
    progress: list[tuple[int, int]] = []
    digests = {file.wire.path: file.wire.digest for file in files}
    missing = {digests["copy.safetensors"], digests["empty"]}
    sent = list(chunks("default", files, missing, lambda done, total: progress.append((done, total))))
    assert {message.digest for message in sent} == missing
    assert all(len(message.data) <= CHUNK_BYTES for message in sent)
    of_weights = [message for message in sent if message.digest == digests["copy.safetensors"]]
    assert [message.offset for message in of_weights] == [0, CHUNK_BYTES]
    assert b"".join(message.data for message in of_weights) == bytes(range(256)) * 5000
    assert [message.data for message in sent if message.digest == digests["empty"]] == [b""]
    assert progress[-1] == (1_280_000, 1_280_000)


def test_the_registration(folder: Path) -> None:
    source = source_of(folder)
    nothing = Demands(), Sets(None, None)
    request = register_request("d", "m", source, local_files(source), *nothing, task="t", dataset="s", accuracy=0.9, wait=True)
    assert [file.path for file in request.directory.files] == ["config.json", "empty", "inner/weights.safetensors"]
    assert (request.accuracy, request.wait_for_variants) == (0.9, True)
    builder = BuilderModel("a.b:c", {"layers": 3, "name": "x"}, 5, folder / "inner" / "weights.safetensors")
    demands = Demands()
    request = register_request(
        "d", "m", builder, local_files(builder), demands, sets_of(demands), task="", dataset="", accuracy=None, wait=False
    )
    assert dict(request.builder.arguments) == {"layers": "3", "name": '"x"'}
    assert request.builder.seed == 5
    assert [file.path for file in request.builder.weights] == ["weights.safetensors"]
    assert not request.HasField("accuracy")
    assert local_files(BuilderModel("a.b:c")) == []
    assert not any(request.HasField(name) for name in ("evaluation", "allow_loss", "lossy", "calibration", "variants"))


def test_what_variants_are_measured_by(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.npz").write_bytes(b"evaluation")
    (tmp_path / "some.npz").write_bytes(b"calibration")
    source = source_of(folder)
    demands = Demands(tmp_path / "eval.npz", "top1", 0.02, True, tmp_path / "some.npz", [])
    sets = sets_of(demands)
    assert [file.path.name for file in sets.files] == ["eval.npz", "some.npz"]
    request = register_request("d", "m", source, local_files(source), demands, sets, task="", dataset="", accuracy=None, wait=False)
    assert (request.evaluation.file.size_bytes, request.evaluation.metric) == (10, "top1")
    assert request.calibration.digest == blake3.blake3(b"calibration").hexdigest()
    assert (request.allow_loss, request.lossy) == (0.02, True)
    assert request.HasField("variants")  # nothing is a choice, too
    assert list(request.variants.recipes) == []
    with pytest.raises(NotFound, match=r"calibration set '.*none\.npz' is no file"):
        sets_of(Demands(calibration=tmp_path / "none.npz"))


def test_a_stream_that_ends_without_a_result() -> None:
    with pytest.raises(Internal, match="without a result"):
        result_of(None)
    with pytest.raises(Internal, match="op foo"):
        result_of(registry_pb2.JobEvent(error="op foo"))


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("TESSERA_ENDPOINT", "TESSERA_ADMIN_ENDPOINT", "TESSERA_TOKEN", "TESSERA_STATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def recorded(folder: Path, port: int = 9001) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text("abc\n")
    record: dict[str, Any] = {
        "endpoint": f"127.0.0.1:{port}",
        "admin_endpoint": f"127.0.0.1:{port + 2}",
        "token_file": str(folder / "token"),
    }
    record["domains"] = {"default": dict(record), "other": {"endpoint": "127.0.0.1:9101", "admin_endpoint": "127.0.0.1:9103"}}
    (folder / "platform.json").write_text(json.dumps(record))
    return folder


def test_default_ports(no_environment: Path) -> None:
    assert find_target() == Target("127.0.0.1:8001", "127.0.0.1:8003", None)


def test_the_state_folder(no_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Target("127.0.0.1:9001", "127.0.0.1:9003", "abc")
    folder = recorded(no_environment / "mine")
    assert find_target(state=folder) == expected
    monkeypatch.setenv("TESSERA_STATE", str(folder))
    assert find_target() == expected
    # The recorded token goes to the recorded platform only.
    assert find_target("127.0.0.1:9001").token == "abc"
    assert find_target("elsewhere:9001").token is None
    with pytest.raises(FailedPrecondition, match="no platform is recorded"):
        find_target(state=no_environment / "nobody")
    (folder / "platform.json").write_text("{")
    for needed in ({}, {"endpoint": "elsewhere:9001"}, {"token": "mine"}):
        with pytest.raises(FailedPrecondition, match="cannot be read"):
            find_target(**needed)
    assert find_target("elsewhere:9001", token="mine") == Target("elsewhere:9001", "elsewhere:9003", "mine")
    monkeypatch.setenv("TESSERA_TOKEN", "mine")
    assert find_target("elsewhere:9001").token == "mine"


def test_each_trust_domain_has_a_gateway_of_its_own(no_environment: Path) -> None:
    folder = recorded(no_environment / "mine")
    assert find_target(state=folder, trust_domain="other") == Target("127.0.0.1:9101", "127.0.0.1:9103", "abc")
    assert (
        find_target(state=folder, trust_domain="nobodys") == find_target(state=folder, trust_domain="default") == find_target(state=folder)
    )
    assert find_target("127.0.0.1:9101", state=folder).token == "abc"


def test_arguments_over_environment_over_state(no_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(no_environment / "tessera")
    monkeypatch.setenv("TESSERA_ENDPOINT", "a:1")
    assert find_target() == Target("a:1", "a:3", None)
    monkeypatch.setenv("TESSERA_ADMIN_ENDPOINT", "b:2")
    monkeypatch.setenv("TESSERA_TOKEN", "env")
    assert find_target() == Target("a:1", "b:2", "env")
    assert find_target("c:3", admin_endpoint="d:4", token="arg") == Target("c:3", "d:4", "arg")
    for bad in ("nowhere", ":1", "host:port"):
        monkeypatch.delenv("TESSERA_ADMIN_ENDPOINT", raising=False)
        with pytest.raises(InvalidInput, match="HOST:PORT"):
            find_target(bad)
