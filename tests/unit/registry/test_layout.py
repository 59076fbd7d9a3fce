"""Uploaded folders judged before torch is imported: every refusal names the file and says what would work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tessera.domain.errors import InvalidInput, TesseraError, Unsupported
from tessera.registry.importer import layout
from tessera.registry.importer.sentence import Pooling, read_pooling


def folder(tmp_path: Path, **files: object) -> Path:
    for name, content in files.items():
        path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


CONFIG = {"architectures": ["BertModel"]}


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        ({"config_dot_json": CONFIG}, InvalidInput, "'model.safetensors': is missing"),
        ({"config_dot_json": CONFIG, "pytorch_model_dot_bin": "x"}, InvalidInput, "'pytorch_model.bin': pickled weights run code"),
        ({"config_dot_json": CONFIG, "weights_dot_pt": "x"}, InvalidInput, "'weights.pt'"),
        ({"config_dot_json": "{", "model_dot_safetensors": "x"}, InvalidInput, "'config.json': is no valid JSON"),
        ({"config_dot_json": "[1]", "model_dot_safetensors": "x"}, InvalidInput, "must hold a JSON object"),
        ({"config_dot_json": "[" * 100_000, "model_dot_safetensors": "x"}, InvalidInput, "is no valid JSON"),
        (
            {"config_dot_json": {**CONFIG, "auto_map": {"AutoModel": "evil.Model"}}, "model_dot_safetensors": "x"},
            Unsupported,
            'auto_map {"AutoModel": "evil.Model"} asks to run code',
        ),
        (
            {"config_dot_json": {**CONFIG, "quantization_config": {"bits": 4}}, "model_dot_safetensors": "x"},
            Unsupported,
            "quantization_config",
        ),
        (
            {"config_dot_json": CONFIG, "model_dot_safetensors_dot_index_dot_json": {"weight_map": {"w": "model-2-of-2.safetensors"}}},
            InvalidInput,
            "'model-2-of-2.safetensors': is missing (model.safetensors.index.json names it)",
        ),
        (
            {"config_dot_json": CONFIG, "model_dot_safetensors_dot_index_dot_json": {"weight_map": {"w": "../other/model.safetensors"}}},
            InvalidInput,
            "'../other/model.safetensors': must be a file beside the index",
        ),
        (
            {"config_dot_json": CONFIG, "model_dot_safetensors_dot_index_dot_json": {"weight_map": {"w": "pytorch_model.bin"}}},
            InvalidInput,
            "'pytorch_model.bin': must be a safetensors file",
        ),
        ({"config_dot_json": CONFIG, "model_dot_safetensors_dot_index_dot_json": {}}, InvalidInput, "must hold a weight_map"),
    ],
)
def test_hugging_face_folder_that_is_refused(tmp_path: Path, files: dict[str, object], kind: type[TesseraError], words: str) -> None:
    with pytest.raises(kind) as refused:
        layout.check_hugging_face(folder(tmp_path, **files))
    assert words in str(refused.value)


def test_pickle_beside_safetensors_is_not_looked_at(tmp_path: Path) -> None:
    files = {"config_dot_json": CONFIG, "model_dot_safetensors": "x", "pytorch_model_dot_bin": "x"}
    assert layout.check_hugging_face(folder(tmp_path, **files)) == CONFIG


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"config_dot_json": {}, "x_dot_pt2": ""}, "directory"),
        ({"x_dot_pt2": ""}, "pt2"),
        ({"a__x_dot_pt2": ""}, "pt2"),
        ({"x_dot_pt2": "", "y_dot_pt2": ""}, "x.pt2, y.pt2"),
        ({"model_dot_pkl": ""}, "'model.pkl': pickle files run code"),
        ({"model_dot_onnx": "", "weights_dot_bin": ""}, "onnx"),
        ({"config_dot_json": {}, "model_dot_onnx": ""}, "onnx"),
        ({"config_dot_json": {}, "model_dot_safetensors": "", "onnx__model_dot_onnx": ""}, "directory"),
        ({"x_dot_onnx": "", "y_dot_onnx": ""}, "x.onnx, y.onnx"),
        ({"x_dot_onnx": "", "x_dot_pt2": ""}, "x.pt2, x.onnx"),
        ({"readme_dot_md": ""}, "config.json is missing"),
        ({}, "(empty)"),
    ],
)
def test_kind_of_source(tmp_path: Path, files: dict[str, object], found: str) -> None:
    if found in ("directory", "pt2", "onnx"):
        assert layout.source_kind(folder(tmp_path, **files)) == found
        return
    with pytest.raises(InvalidInput) as refused:
        layout.source_kind(folder(tmp_path, **files))
    assert found in str(refused.value)


def test_links_are_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (source / "sub/model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match=r"sub/model\.safetensors.*links are not followed"):
        layout.refuse_links(source)
    (source / "sub/model.safetensors").unlink()
    (source / "etc").symlink_to("/etc")
    with pytest.raises(InvalidInput, match="'etc'"):
        layout.refuse_links(source)


@pytest.mark.parametrize(
    ("kinds", "pooling", "found"),
    [
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode_mean_tokens": True}, Pooling("mean", True)),
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling("cls", False)),
        (["Transformer", "Pooling"], {"pooling_mode": "mean"}, Pooling("mean", False)),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, None),
        (["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, None),
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True}, None),
    ],
)
def test_pooling_is_read_or_left_out(tmp_path: Path, kinds: list[str], pooling: dict[str, object], found: Pooling | None) -> None:
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{place}_{kind}" if place else ""} for place, kind in enumerate(kinds)
    ]
    assert read_pooling(folder(tmp_path, modules_dot_json=modules, **{"1_Pooling__config_dot_json": pooling})) == found


def test_pooling_path_does_not_leave_the_folder(tmp_path: Path) -> None:
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../outside"}]
    assert read_pooling(folder(tmp_path, modules_dot_json=modules)) is None


def test_looking_needs_no_torch_of_its_own() -> None:
    import subprocess

    code = "import sys; import tessera.registry.importer.run, tessera.registry.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
