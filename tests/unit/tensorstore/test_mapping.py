"""Mapped blobs: one mapping per process and digest, never taken from under a view, bounds checked."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.artifact import TensorRef
from tessera.domain.errors import DataCorrupted, InvalidInput, NotFound
from tessera.domain.ids import Digest
from tessera.domain.signature import DATATYPES
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mapping import BlobMap, numpy_dtype, tensor_view
from tessera.tensorstore.pack import NamedTensor, PackWriter
from tessera.testing.blobs import ABSENT, blob_of, put


def pack_of(tensors: Iterable[NamedTensor]) -> tuple[tuple[TensorRef, ...], bytes | None]:
    writer = PackWriter()
    for tensor in tensors:
        writer.add(*tensor)
    return writer.finish()


def _mappings(digest: Digest) -> int:
    return sum(digest in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("keep_idle", [False, True])
def test_a_blob_is_mapped_once_read_only_and_let_go_at_the_end(store: LocalTensorStore, keep_idle: bool) -> None:
    data = blob_of(1, 500)
    path = store.path(put(store, data))
    maps = BlobMap(keep_idle)
    first, second = maps.open(path), maps.open(str(path))
    assert first is second
    assert bytes(first) == data
    assert first.readonly
    assert _mappings(Digest(path.name)) == 1
    assert maps.mapped_bytes == 500
    file = path.stat()
    assert maps.mapped(path) == (first, file.st_dev, file.st_ino, False), "open twice"
    assert not maps.close(path)
    assert maps.mapped(path).alone is not keep_idle
    assert maps.trim() == []
    assert maps.close(path.name) is not keep_idle
    assert maps.trim([ABSENT, Digest(path.name)]) == ([Digest(path.name)] if keep_idle else [])
    assert maps.digests() == {}
    assert bytes(first) == data  # views outlive the map
    del first, second
    gc.collect()
    assert _mappings(Digest(path.name)) == 0
    with pytest.raises(ValueError, match="not open"):
        maps.close(path)


def test_an_idle_mapping_is_opened_again_without_mapping(store: LocalTensorStore) -> None:
    path = store.path(put(store, blob_of(1, 500)))
    maps = BlobMap(keep_idle=True)
    view = maps.open(path)
    maps.close(path)
    assert maps.open(path) is view
    maps.close(path)
    with pytest.raises(ValueError, match="not open"):
        maps.close(path)


def test_a_blob_of_no_length_is_an_empty_view(store: LocalTensorStore) -> None:
    path = store.path(put(store, b""))
    maps = BlobMap()
    assert bytes(maps.open(path)) == b""
    maps.touch(path)
    assert tensor_view(maps.open(path), TensorRef("t", "FP32", (0, 3), Digest(path.name), 0)).shape == (0, 3)
    assert not maps.close(path)
    assert maps.close(path)


def test_a_replaced_file_is_mapped_anew_and_never_served_from_the_old_mapping(store: LocalTensorStore) -> None:
    data = blob_of(1, 500)
    path = store.path(put(store, data))
    path.chmod(0o644)
    path.write_bytes(bytes(500))
    path.chmod(0o444)
    maps = BlobMap(keep_idle=True)
    corrupted = maps.open(path)
    store.quarantine(Digest(path.name))
    with pytest.raises(NotFound, match=path.name):
        maps.open(path)
    put(store, data)
    assert bytes(maps.open(path)) == data
    assert bytes(corrupted) == bytes(500)
    maps.close(path)
    maps.close(path)
    assert maps.trim() == [Digest(path.name)]


def test_a_reclaimed_blob_keeps_its_bytes_for_who_maps_it(store: LocalTensorStore) -> None:
    data = blob_of(1, 600)
    path = store.path(put(store, data))
    view = BlobMap().open(path)
    put(store, blob_of(2, 400))
    store.shrink(400)
    assert not path.exists()
    assert bytes(view) == data


def test_touching_what_is_not_open_does_nothing(store: LocalTensorStore) -> None:
    path = store.path(put(store, blob_of(1, 500)))
    maps = BlobMap()
    maps.touch(path)
    view = maps.open(path)
    maps.touch(path)
    assert bytes(view) == blob_of(1, 500)


@pytest.mark.parametrize("datatype", [name for name, size in DATATYPES.items() if size])
def test_every_datatype_has_a_numpy_dtype_of_its_size(datatype: str) -> None:
    assert numpy_dtype(datatype).itemsize == DATATYPES[datatype]


def test_a_datatype_of_no_fixed_size_is_refused() -> None:
    with pytest.raises(InvalidInput, match="BYTES"):
        numpy_dtype("BYTES")


@given(st.lists(st.tuples(st.sampled_from(["FP32", "INT64", "BOOL", "BF16"]), st.lists(st.integers(0, 7), max_size=3)), max_size=12))
def test_what_was_packed_is_seen_again(tensors: list[tuple[str, list[int]]]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 2, shape).astype(numpy_dtype(dtype)) for dtype, shape in tensors]
    named = [(f"t{n}", dtype, tuple(shape), arrays[n].tobytes()) for n, (dtype, shape) in enumerate(tensors)]
    refs, pack = pack_of(named)
    assert [ref.slot for ref in refs] == [name for name, *_ in named]
    for ref, array in zip(refs, arrays, strict=True):
        assert pack is not None
        assert ref.pack_offset is not None
        assert ref.pack_offset % 64 == 0
        seen = tensor_view(memoryview(pack), ref)
        assert seen.dtype == array.dtype
        assert not seen.flags.writeable
        np.testing.assert_array_equal(seen, array)


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "offset"),
    [
        ("FP32", (3,), 16, None),  # shape does not make the size
        ("FP32", (3,), 12, None),  # another size than the blob's
        ("FP32", (2, 4), 32, None),
        ("FP32", (4,), 16, 64),  # beyond the end
        ("FP32", (4,), 16, -64),
        ("FP32", (-2, -2), 16, None),
    ],
)
def test_a_reference_that_does_not_fit_its_blob_is_refused(dtype: str, shape: tuple[int, ...], size: int, offset: int | None) -> None:
    ref = TensorRef("weight", dtype, shape, digest_of(bytes(16)), size, offset)
    with pytest.raises(DataCorrupted, match="tensor weight"):
        tensor_view(memoryview(bytes(16)), ref)
