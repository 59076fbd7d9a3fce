"""Digest changes of one status stream, and what an artifact means for a node."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.errors import FailedPrecondition, Unsupported
from tessera.domain.ids import BuildClass
from tessera.domain.signature import Signature
from tessera.node_agent.core.artifacts import load_of
from tessera.node_agent.core.changes import DigestLedger


@given(st.lists(st.frozensets(st.integers(0, 20), max_size=10), min_size=1, max_size=10))
def test_full_first_then_changes_that_add_up(make: Any, states: list[frozenset[int]]) -> None:
    ledger = DigestLedger()
    known: set[str] = set()
    for number, state in enumerate(states):
        change = ledger.change_to(make.digest(item) for item in state)
        assert change.full == (number == 0)
        known = set(change.added) if change.full else (known | set(change.added)) - set(change.removed)
        assert known == {make.digest(item) for item in state}
        assert not set(change.added) & set(change.removed)


def artifact(make: Any, backend: str = "ort", build_class: str | None = "x86_64-avx2-ort1.32.0") -> Artifact:
    tensors = (
        TensorRef("w", "FP32", (2048,), make.digest(2), 8192),
        TensorRef("tied", "FP32", (2048,), make.digest(2), 8192),
        TensorRef("b", "FP32", (2,), make.digest(3), 8, pack_offset=0),
    )
    built = None if build_class is None else BuildClass(build_class)
    return Artifact(backend, "fp32", "onnx", Blob(make.digest(4), 100), Blob(make.digest(5), 64), tensors, Signature((), ()), built, 8)


def test_a_load_maps_each_blob_once_the_artifacts_own_too(make: Any) -> None:
    load = load_of(make.digest(1), 700, artifact(make), BuildClass("x86_64-avx2-ort1.32.0"))
    assert load.flavour == "ort"
    assert load.blobs == {make.digest(1): 700, make.digest(2): 8192, make.digest(4): 100, make.digest(5): 64}
    assert load.max_batch == 8


def test_another_build_classs_artifact_is_never_loaded(make: Any) -> None:
    with pytest.raises(FailedPrecondition, match=r"built for x86_64-avx2-ort1\.32\.0; this node is x86_64-avx512"):
        load_of(make.digest(1), 1, artifact(make), BuildClass("x86_64-avx512-ort1.32.0"))
    assert load_of(make.digest(1), 1, artifact(make, "aten", None), BuildClass("other")).flavour == "aten"


def test_an_export_is_not_servable(make: Any) -> None:
    with pytest.raises(Unsupported, match="no runtime serves backend 'onnx'"):
        load_of(make.digest(1), 1, artifact(make, "onnx", None), BuildClass("any"))
