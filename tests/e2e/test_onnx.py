"""ONNX files from the command line to tritonclient: served by `ort` alone, as ONNX Runtime answers to the file itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import e2e_models
import e2e_onnx
import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e_models import agrees
from e2e_platform import Platform

from tessera.sdk import Client, NotFound

IDS = np.array([[1, 5, 7, 199], [0, 0, 3, 4], [2, 2, 2, 2]])


@pytest.fixture(scope="module")
def hand(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file that the model `hand` was registered from."""
    path = e2e_onnx.by_hand(tmp_path_factory.mktemp("onnx") / "hand.onnx")
    registered = platform.json("model", "register", "hand", str(path), "--task", "words", "--wait")
    assert [(one["name"], one["state"]) for one in registered["variants"]] == [("ort-fp32", "ready")]
    yield path
    with platform.client() as client:
        client.delete_model("hand")


def test_tritonclient_asks_a_file_made_by_hand(platform: Platform, hand: Path) -> None:
    with triton.InferenceServerClient(platform.endpoint) as sync:
        assert sync.is_model_ready("hand")
        metadata = sync.get_model_metadata("hand")
        assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [("ids", "INT64", [-1, -1])]
        assert [(one.name, one.datatype) for one in metadata.outputs] == [("vector", "FP32"), ("best", "INT64")]
        given = triton.InferInput("ids", list(IDS.shape), "INT64")
        given.set_data_from_numpy(IDS)
        for _ in range(2):
            answer = sync.infer("hand", [given])
            wanted = e2e_onnx.answers(hand, ids=IDS)
            assert agrees(answer.as_numpy("vector"), wanted["vector"])
            np.testing.assert_array_equal(answer.as_numpy("best"), wanted["best"])


def test_the_sdk_asks_by_variant_and_has_it_explained(client: Client, hand: Path) -> None:
    answer = client.infer("hand@1/ort-fp32", {"ids": IDS})
    assert agrees(answer.outputs["vector"], e2e_onnx.answers(hand, ids=IDS)["vector"])
    plain = client.infer("hand", {"ids": IDS[:1]})
    explained = client.explain(plain.request_id)
    assert (explained.model, explained.outcome) == ("hand@1", "ok")
    with pytest.raises(NotFound, match="ort-fp32"):
        client.infer("hand@1/aten-fp32", {"ids": IDS})


def test_it_is_profiled_and_shown(platform: Platform, hand: Path) -> None:
    done = platform.tessera("profile", "run", "hand", "--quick")
    assert done.returncode == 0, done.stderr
    (version,) = platform.json("model", "show", "hand")["versions"]
    assert (version["source_kind"], [one["name"] for one in version["variants"]]) == ("onnx", ["ort-fp32"])
    profiled = platform.json("profile", "show", "hand")
    assert [one["variant"] for one in profiled] == ["hand@1/ort-fp32"]


def test_a_file_of_torch(client: Client, net: e2e_models.Net, tmp_path: Path) -> None:
    path = e2e_onnx.from_torch(net, e2e_models.IMAGE, tmp_path / "net.onnx")
    client.register("net-onnx", path, wait=True)
    try:
        images = e2e_models.images(3)
        (output,) = client.infer("net-onnx", {"image": images}).outputs.values()
        assert agrees(output, next(iter(e2e_onnx.answers(path, image=images).values())))
        assert agrees(output, net.eager(images))
    finally:
        client.delete_model("net-onnx")


def test_a_file_that_is_refused_is_named(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08" * 50)
    done = platform.tessera("model", "register", "broken", str(tmp_path / "broken.onnx"))
    assert done.returncode == 2
    assert "file 'broken.onnx': is no ONNX file" in done.stderr
