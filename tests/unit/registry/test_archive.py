"""`.pt2` archives that would run code, or that are none: refused before torch reads a byte."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput, TesseraError, Unsupported
from tessera.registry.importer import pt2
from tessera.registry.importer.archive import _check_expression, check_archive

ROOT = "m"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The records of a real archive."""
    path = tmp_path_factory.mktemp("pt2") / "m.pt2"
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(inplace=True)).eval()
    program = torch.export.export(module, (torch.randn(2, 4),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def write(tmp_path: Path, records: dict[str, bytes]) -> Path:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as made:
        for name, data in records.items():
            made.writestr(name, data)
    return path


def edited(records: dict[str, bytes], name: str, edit: Callable[[Any], None]) -> dict[str, bytes]:
    document = json.loads(records[name])
    edit(document)
    return {**records, name: json.dumps(document).encode()}


MODEL, WEIGHTS = f"{ROOT}/models/model.json", f"{ROOT}/data/weights/model_weights_config.json"
CONSTANTS, SAMPLES = f"{ROOT}/data/constants/model_constants_config.json", f"{ROOT}/data/sample_inputs/model.pt"


def test_real_archive_passes_and_loads(tmp_path: Path, archive: dict[str, bytes]) -> None:
    path = write(tmp_path, archive)
    assert check_archive(path, "m.pt2") == SAMPLES
    loaded = pt2.load(path, "m.pt2")
    assert [spec.name for spec in loaded.inputs] == ["input"]
    assert loaded.output_names == ("output",)


def first_node(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"][0]


def hostile(records: dict[str, bytes]) -> list[tuple[str, dict[str, bytes], type[TesseraError], str]]:
    weights = {
        "weights pickled": ("use_pickle", True),
        "weights by absolute path": ("path_name", "/etc/passwd"),
        "weights by dots": ("path_name", "../models/model.json"),
    }
    cases: list[tuple[str, dict[str, bytes], type[TesseraError], str]] = []
    for what, (field, value) in weights.items():
        cases.append(
            (what, edited(records, WEIGHTS, lambda d, f=field, v=value: d["config"]["0.weight"].update({f: v})), Unsupported, "0.weight")
        )
    opaque = {"config": {"c": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    cases += [
        ("opaque constant", {**records, CONSTANTS: json.dumps(opaque).encode()}, Unsupported, "'c'"),
        ("legacy weights", {**records, f"{ROOT}/data/weights/model.pt": b"x"}, Unsupported, "is pickled"),
        ("compiled library", {**records, f"{ROOT}/data/aotinductor/m/x.so": b"x"}, Unsupported, "compiled programs are not imported"),
        ("two programs", {**records, f"{ROOT}/models/other.json": b"{}"}, Unsupported, "it holds 2 exported programs"),
        ("no program", {k: v for k, v in records.items() if k != MODEL}, Unsupported, "it holds 0 exported programs"),
        ("no samples", {k: v for k, v in records.items() if k != SAMPLES}, InvalidInput, "lacks the record"),
        ("no weights list", {k: v for k, v in records.items() if k != WEIGHTS}, InvalidInput, "lacks the record"),
        ("escaping record", {**records, f"{ROOT}/../x": b"x"}, InvalidInput, "'m/../x'"),
        ("two roots", {**records, "n/x": b"x"}, InvalidInput, "one folder"),
        ("broken JSON", {**records, MODEL: b"{"}, InvalidInput, "is no .pt2 archive"),
    ]
    for target in (
        "torch.load",
        "torch.hub.load",
        "builtins.exec",
        "torch.ops.load_library",
        "#custom",
        "_operator.attrgetter",
        "math.factorial",
    ):
        changed = edited(records, MODEL, lambda d, t=target: first_node(d).update(target=t))
        cases.append((target, changed, Unsupported, f"operator '{target}'"))
    for text in (
        "__import__('os').system('x')",
        "Symbol('s0').__class__",
        "Lambda(Symbol('x'), 1)",
        "9**9**9**9",
        "Symbol(__import__('os'))",
    ):
        changed = edited(records, MODEL, lambda d, t=text: d.update(extra={"expr_str": t}))
        cases.append((text, changed, InvalidInput, "shape expression"))
    spec = '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
    nested = edited(records, MODEL, lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=spec))
    cases.append(("import by pytree", nested, Unsupported, "collections.defaultdict"))
    return cases


def test_hostile_archives_are_refused(tmp_path: Path, archive: dict[str, bytes]) -> None:
    for what, records, kind, words in hostile(archive):
        with pytest.raises(kind) as refused:
            check_archive(write(tmp_path, records), "m.pt2")
        assert words in str(refused.value), what


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def test_pickled_sample_inputs_never_run(tmp_path: Path, archive: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    torch.save(((torch.zeros(2, 4), Payload()), {}), buffer)
    for data in (buffer.getvalue(), pickle.dumps(Payload())):
        with pytest.raises(Unsupported, match="pickled with classes"):
            pt2.load(write(tmp_path, {**archive, SAMPLES: data}), "m.pt2")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + bytes(18), b"\x80\x04not a zip", b"x" * 1000])
def test_file_that_is_no_archive(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"m\.pt2"):
        check_archive(path, "m.pt2")


def test_record_that_unpacks_to_more_than_the_archive(tmp_path: Path, archive: dict[str, bytes]) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in archive.items():
            made.writestr(name, data)
        made.writestr(f"{ROOT}/bomb", bytes(10 << 20))
    with pytest.raises(InvalidInput, match="unpacks to 10485760 bytes"):
        check_archive(path, "m.pt2")


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s53', positive=True, integer=True)", "FloorDiv(Add(Symbol('s53', positive=True, integer=True), Integer(1)), Integer(2))",
        "Max(Integer(1), Mul(Integer(12), Symbol('s0', positive=True, integer=True)))", "s0 + 1", "2*s0", "True",
    ],
)  # fmt: skip
def test_real_shape_expressions_pass(text: str) -> None:
    _check_expression(text, "m.pt2")


@given(st.text(max_size=60))
def test_any_other_text_is_judged_without_harm(text: str) -> None:
    try:
        _check_expression(text, "m.pt2")
    except InvalidInput:
        return
    assert "." not in text.replace(".", "0", 1) or not any(c.isalpha() for c in text.split(".")[-1])
