"""Small tensors travel in the pack, large ones are blobs; what is stored can be read from its digest alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from tessera.domain.artifact import PACK_THRESHOLD_BYTES, Artifact, Blob, TensorRef
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest
from tessera.domain.signature import Signature
from tessera.repository import Repository
from tessera.repository.artifacts import StoredTensors, decode, digest_of, store_artifact, store_tensors
from tessera.tensorstore.pack import NamedTensor, PackWriter


def pack_of(tensors: Iterable[NamedTensor]) -> tuple[tuple[TensorRef, ...], bytes | None]:
    writer = PackWriter()
    for tensor in tensors:
        writer.add(*tensor)
    return writer.finish()


def _artifact(stored: StoredTensors, graph: Blob) -> Artifact:
    return Artifact("aten", "fp32", "aten", graph, stored.pack, stored.tensors, Signature((), ()), None, 8)


@pytest.mark.parametrize(("size", "packed"), [(0, True), (PACK_THRESHOLD_BYTES - 1, True), (PACK_THRESHOLD_BYTES, False)])
def test_the_threshold_decides(size: int, packed: bool) -> None:
    (ref,), pack = pack_of([("t", "UINT8", (size,), bytes(size))])
    assert (ref.pack_offset is not None) is packed
    assert (pack is not None) is packed
    assert ref.digest == digest_of(bytes(size))


def test_tensors_lie_aligned_one_after_another_with_zeros_between() -> None:
    refs, pack = pack_of(
        [("a", "UINT8", (65,), b"a" * 65), ("none", "FP32", (0,), b""), ("b", "UINT8", (3,), b"bbb"), ("end", "FP32", (0,), b"")]
    )
    assert [ref.pack_offset for ref in refs] == [0, 128, 128, 192]
    assert pack == b"a" * 65 + bytes(63) + b"bbb" + bytes(61)


def test_no_small_tensor_no_pack() -> None:
    assert PackWriter().finish() == ((), None)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("FP32", (3,)), ("FP32", ()), ("BYTES", (16,)), ("float", (4,)), ("FP32", (-1, 4)), ("FP32", (-2, -2))]
)
def test_a_tensor_that_is_not_what_it_says_is_refused_by_name(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"tensor layer\.weight"):
        pack_of([("layer.weight", dtype, shape, bytes(16))])


def test_arrays_are_stored_as_their_bytes_and_tied_ones_once(repository: Repository) -> None:
    rng = np.random.default_rng(1)
    large, small = rng.standard_normal((64, 32)).astype("<f4"), rng.standard_normal(7).astype("<f4")
    tensors = [
        ("w", "FP32", (64, 32), large.data),
        ("tied", "FP32", (32, 64), large.data),
        ("b", "FP32", (7,), small.data),
    ]
    stored = store_tensors(repository, tensors)
    assert stored.pack is not None
    assert (stored.new_bytes, stored.known_bytes) == (large.nbytes + stored.pack.size_bytes, 0)
    assert repository.read(stored.tensors[0].digest) == large.tobytes()
    assert stored.tensors[0].digest == stored.tensors[1].digest
    assert len(list(repository.digests())) == 2
    again = store_tensors(repository, tensors)
    assert (again.tensors, again.pack) == (stored.tensors, stored.pack)
    assert (again.new_bytes, again.known_bytes) == (0, stored.new_bytes)


def test_a_sibling_stores_only_what_differs(repository: Repository) -> None:
    trunk = ("trunk", "UINT8", (8192,), b"t" * 8192)
    store_tensors(repository, [trunk, ("head", "UINT8", (5000,), b"1" * 5000)])
    sibling = store_tensors(repository, [trunk, ("head", "UINT8", (5000,), b"2" * 5000)])
    assert (sibling.new_bytes, sibling.known_bytes) == (5000, 8192)


def test_an_artifact_is_stored_after_its_blobs(repository: Repository) -> None:
    stored = store_tensors(repository, [("w", "UINT8", (8192,), bytes(8192)), ("b", "UINT8", (4,), b"bias")])
    graph = Blob(digest_of(b"graph"), 5)
    artifact = _artifact(stored, graph)
    with pytest.raises(InvalidInput, match=f"names blob {graph.digest}, which the repository lacks"):
        store_artifact(repository, artifact)
    repository.put_bytes(b"graph")
    digest = store_artifact(repository, artifact)
    assert decode(repository.read(digest)) == artifact
    assert store_artifact(repository, artifact) == digest


def test_an_artifact_that_contradicts_itself_is_not_stored(repository: Repository) -> None:
    broken = _artifact(StoredTensors((), None, 0, 0), Blob(Digest("x"), 1))
    with pytest.raises(InvalidInput, match="graph digest"):
        store_artifact(repository, broken)
    assert list(repository.digests()) == []
