"""Evaluation sets: what is read, and that no archive does harm."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.domain.signature import Signature, TensorSpec
from tessera.evaluation import metric, read_set

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)), TensorSpec("ids", "INT64", (-1, -1))), (TensorSpec("y", "FP32", (-1, 2)),))
ONE = Signature((TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),), batched=False)
X = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = np.ones((4, 5), np.int64)
LABELS = np.array([0, 1, 0, 1])


def packed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def archive(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def npy(shape: str, descr: str = "'<f4'", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def test_inputs_and_labels() -> None:
    found = read_set(packed(labels=LABELS, ids=IDS, x=X), SIGNATURE)
    assert (found.samples, list(found.inputs), list(found.truth)) == (4, ["x", "ids"], ["labels"])
    np.testing.assert_array_equal(found.inputs["x"], X)


def test_byte_order_and_array_order_do_not_matter() -> None:
    found = read_set(packed(y=np.ones((4, 2), np.float32), ids=np.asfortranarray(IDS), x=X.astype(">f4")), SIGNATURE)
    np.testing.assert_array_equal(found.inputs["x"], X)
    assert found.inputs["x"].dtype == np.dtype("f4")
    assert found.inputs["ids"].flags.c_contiguous


def test_requests_are_cut_and_their_answers_joined() -> None:
    found = read_set(packed(labels=LABELS, ids=IDS, x=X), SIGNATURE)
    asked = list(found.requests(3))
    assert [len(one["x"]) for one in asked] == [3, 1]
    answers = found.joined([{"y": np.eye(2)[one["x"][:, 0].astype(int) // 3 % 2]} for one in asked])
    assert metric("top1").score(answers, found.truth) == 1.0


def test_a_model_without_a_batch_is_asked_sample_by_sample() -> None:
    found = read_set(packed(y=X[:, :2], x=X[:, :2]), ONE)
    asked = list(found.requests(8))
    assert [one["x"].shape for one in asked] == [(2,)] * 4
    assert metric("cosine").score(found.joined([{"y": one["x"]} for one in asked]), found.truth) == 1.0


def test_answers_that_cannot_be_joined_are_named() -> None:
    found = read_set(packed(labels=LABELS, ids=IDS, x=X), SIGNATURE)
    with pytest.raises(InvalidInput, match=r"output y shape .*\[1, 2\], \[3, 9\].*: must be the same for every sample"):
        found.joined([{"y": np.ones((3, 9))}, {"y": np.ones((1, 2))}])
    with pytest.raises(InvalidInput, match=r"output y shape \[2, 2\]: must have 4 samples in dimension 0"):
        found.joined([{"y": np.ones((1, 2))}, {"y": np.ones((1, 2))}])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (packed(labels=LABELS, x=X), r"evaluation set 'labels': input ids is missing"),
        (packed(ids=IDS, x=X), r"evaluation set 'x, ids': has no right answers: an array labels, or one named y"),
        (packed(ids=IDS, x=X, y=X, z=X), r"array 'z': must be named after an input, labels or an output: x, ids, labels, y"),
        (packed(labels=LABELS, ids=IDS, x=X.astype("f8")), r"evaluation set: x dtype 'float64': must be float32 \(FP32\)"),
        (packed(labels=LABELS, ids=IDS, x=X[:, :2]), r"evaluation set: x shape \[4, 2\]: must be \[-1, 3\]"),
        (packed(labels=LABELS, ids=IDS[0], x=X), r"evaluation set: ids shape \[5\]: must be \[-1, -1\]"),
        (packed(labels=LABELS[:3], ids=IDS, x=X), r"evaluation set: labels shape \[3\]: must have 4 samples in dimension 0, as x"),
        (packed(labels=LABELS[:0], ids=IDS[:0], x=X[:0]), r"evaluation set: x shape \[0, 3\]: must have at least 1 sample"),
        (packed(labels=np.int64(1), ids=IDS, x=X), r"evaluation set: labels shape \[\]: must have at least 1 sample"),
        (packed(labels=np.array(["a", "b"]), ids=IDS, x=X), r"evaluation set: labels dtype '<U1': must be one of BOOL"),
        (packed(labels=np.array([{}], dtype=object), ids=IDS, x=X), r"evaluation set: labels dtype 'object'"),
        (b"", "is no .npz archive"),
        (b"PK\x03\x04 not really", "is no .npz archive"),
        (archive(x__npy=b"not numpy"), r"evaluation set: x: is no .npy array"),
        (archive(x__npy=npy("(1, " * 3000)), r"evaluation set: x: is no .npy array"),
        (archive(x__npy=npy("(1000000000000,)")), r"evaluation set: x shape \[1000000000000\]: of float32 does not make the 0 bytes"),
        (archive(x__npy=npy("(-1, -4)", data=bytes(16))), r"evaluation set: x shape \[-1, -4\]"),
        (archive(x__npy=npy("(0, 99999999999999999999)")), r"evaluation set: x shape \[0, 99999999999999999999\]: is too large"),
        (archive(x__npy=npy("(1,)", "'O'", bytes(8))), r"evaluation set: x dtype 'object'"),
        (archive(x__npy=npy("(1,)", "[('a', '<f4')]", bytes(4))), r"evaluation set: x dtype"),
        (archive(evil__sh=b"rm"), r"entry 'evil.sh': must be a .npy array, once"),
    ],
)
def test_what_does_not_fit_is_named(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_set(data, SIGNATURE)


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked() -> None:
    bomb = archive(x__npy=bytes(1 << 22))
    assert len(bomb) < 1 << 14
    with pytest.raises(InvalidInput, match=r"4194304 bytes unpacked.*at most 1048576"):
        read_set(bomb, SIGNATURE, 1 << 20)


def test_an_archive_that_lies_about_its_size_is_not_believed() -> None:
    bomb = archive(x__npy=bytes(1 << 22)).replace(struct.pack("<I", 1 << 22), struct.pack("<I", 64))
    with pytest.raises(InvalidInput, match="is no"):
        read_set(bomb, SIGNATURE, 1 << 20)


def test_too_many_arrays() -> None:
    with pytest.raises(InvalidInput, match=r"'300 arrays': at most 256"):
        read_set(packed(**{f"a{number}": LABELS for number in range(300)}), SIGNATURE)


def test_bytes_have_no_evaluation_sets() -> None:
    signature = Signature((TensorSpec("text", "BYTES", (-1,)),), (TensorSpec("y", "FP32", (-1, 2)),))
    with pytest.raises(InvalidInput, match=r"evaluation set: text 'BYTES': has no evaluation sets"):
        read_set(packed(text=LABELS, labels=LABELS), signature)


def test_a_signature_of_anything_takes_anything() -> None:
    signature = Signature((TensorSpec("x", "ANY", (), any_rank=True),), (TensorSpec("y", "ANY", (), any_rank=True),))
    assert read_set(packed(x=X, y=X), signature).samples == 4


@given(st.data())
def test_a_broken_archive_is_refused_or_read(data: st.DataObject) -> None:
    good = bytearray(packed(labels=LABELS, ids=IDS, x=X))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert read_set(bytes(good[: data.draw(st.integers(0, len(good)))]), SIGNATURE).samples == 4
    except InvalidInput as error:
        refusal = str(error)
    else:
        return
    assert "evaluation set" in refusal
