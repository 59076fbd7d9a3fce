"""Artifacts as bytes: canonical, read back equal, and refused with a reason when they contradict themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.errors import DataCorrupted, InvalidInput, Unsupported
from tessera.domain.ids import BuildClass, Digest
from tessera.domain.signature import Signature, TensorSpec
from tessera.tensorstore.artifact import decode, digest_of, encode

A, B, C = (Digest(letter * 64) for letter in "abc")
SMALL = TensorRef("bias", "FP32", (4,), A, 16, pack_offset=64)
LARGE = TensorRef("weight", "BF16", (64, 64), B, 8192)
ARTIFACT = Artifact(
    backend="ort",
    precision="fp32",
    dialect="onnx",
    graph=Blob(C, 321),
    pack=Blob(C, 80),
    tensors=(SMALL, LARGE),
    signature=Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "INT64", (-1,)),)),
    build_class=BuildClass("x86_64-avx2-ort1.32.0"),
    max_batch=8,
)
IDENTITY = Artifact("identity", "any", "", None, None, (), Signature((), ()), None, 1)


@pytest.mark.parametrize("artifact", [ARTIFACT, IDENTITY])
def test_what_is_written_is_read_back(artifact: Artifact) -> None:
    assert decode(encode(artifact)) == artifact
    assert decode(memoryview(encode(artifact))) == artifact


def test_the_bytes_are_canonical_and_stay_what_they_are() -> None:
    data = encode(ARTIFACT)
    assert data == json.dumps(json.loads(data), separators=(",", ":")).encode()
    assert list(json.loads(data)) == sorted(json.loads(data))
    assert digest_of(encode(IDENTITY)) == "40a7b6bf31f3bc0d8c826de98978d4d2fc928a0fb1a8c4dbd32bf4f04e8d1523"


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"max_batch": 0}, "max_batch 0"),
    "graph digest": ({"graph": Blob(Digest("../../x"), 3)}, "graph digest '../../x'"),
    "pack size": ({"pack": Blob(C, -1)}, "pack size_bytes -1"),
    "twice": ({"tensors": (LARGE, LARGE)}, "tensor weight is there twice"),
    "digest": ({"tensors": (replace(LARGE, digest=Digest("B" * 64)),)}, "tensor weight: digest"),
    "dtype": ({"tensors": (replace(LARGE, dtype="FLOAT"),)}, "dtype 'FLOAT'"),
    "bytes dtype": ({"tensors": (replace(LARGE, dtype="BYTES"),)}, "dtype 'BYTES'"),
    "negative shape": ({"tensors": (replace(LARGE, shape=(-64, -64)),)}, "negative dimensions"),
    "size": ({"tensors": (replace(LARGE, size_bytes=8191),)}, r"BF16 of shape \[64, 64\] is not 8191 bytes"),
    "no pack": ({"pack": None}, "of a pack that is not there"),
    "offset": ({"tensors": (replace(SMALL, pack_offset=32),)}, "pack_offset 32 must be a multiple of 64"),
    "negative offset": ({"tensors": (replace(SMALL, pack_offset=-64),)}, "pack_offset -64"),
    "beyond": ({"pack": Blob(C, 79)}, "ends at 80 of a pack of 79 bytes"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_contradicts_itself_is_neither_written_nor_read(what: str) -> None:
    change, message = BROKEN[what]
    broken = replace(ARTIFACT, **change)
    with pytest.raises(InvalidInput, match=message):
        encode(broken)
    fields = json.loads(encode(ARTIFACT))
    for name, value in change.items():
        fields[name] = json.loads(json.dumps(value, default=lambda part: {key: getattr(part, key) for key in part.__slots__}))
    with pytest.raises(DataCorrupted, match=message):
        decode(json.dumps(fields).encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", encode(ARTIFACT)[:-1], encode(ARTIFACT).replace(b"8192", b'"8192"')])
def test_what_is_no_artifact_is_refused(data: bytes) -> None:
    with pytest.raises(DataCorrupted, match="Artifact"):
        decode(data)


def test_a_later_format_is_refused_with_what_helps() -> None:
    with pytest.raises(Unsupported, match="register the model again"):
        decode(encode(replace(ARTIFACT, format=2)))
