from __future__ import annotations

import numpy as np
import pytest

from tessera.domain.errors import DataCorrupted, InvalidInput
from tessera_openvino.graph import pack, unpack


def test_a_graph_is_read_as_it_was_written() -> None:
    header, topology, constants = unpack(pack({}, {"ids": 10}, b"<net/>", b"\0\1"))
    assert (header.rows, topology, constants) == ({"ids": 10}, b"<net/>", b"\0\1")


@pytest.mark.parametrize(
    "graph", [b"", b"\xff\xff\xff\xff{}", b"\2\0\0\0{}", b"\x24\0\0\0" + b'{"topology_bytes":0,"rows":{},"a":1}', b"onnx"]
)
def test_what_is_no_graph_is_refused(graph: bytes) -> None:
    with pytest.raises(DataCorrupted, match="none of dialect openvino"):
        unpack(graph)


def test_another_format_is_refused() -> None:
    graph = pack({}, {}, b"", b"").replace(b'"format":1', b'"format":2')
    with pytest.raises(DataCorrupted, match="format 2, 1 is read"):
        unpack(graph)


@pytest.mark.parametrize("value", [10, -11, 2**33 + 1])
def test_an_index_beyond_what_it_indexes_is_refused(value: int) -> None:
    header, _, _ = unpack(pack({"ids": ("", "")}, {"ids": 10}, b"", b""))
    for sound in (np.array([[9, -10]]), np.zeros((0, 2), np.int64)):
        header.check({"ids": sound})
    with pytest.raises(InvalidInput, match=rf"inputs ids {value}: must be from -10 to 9"):
        header.check({"ids": np.array([[0, value]])})


def test_whole_numbers_beyond_32_bits_are_refused() -> None:
    header, _, _ = unpack(pack({"x": ("",)}, {}, b"", b""))
    header.check({"x": np.array([2**31 - 1, -(2**31)])})
    header.check({"x": np.array([2.0**40])})
    with pytest.raises(InvalidInput, match=r"inputs x -2147483649"):
        header.check({"x": np.array([-(2**31) - 1])})


def test_lengths_of_one_name_are_one_length() -> None:
    header, _, _ = unpack(pack({"a": ("batch", "n"), "b": ("batch", "", "n")}, {}, b"", b""))
    header.check({"a": np.zeros((2, 7)), "b": np.zeros((2, 3, 7))})
    with pytest.raises(InvalidInput, match=r"inputs b shape \[2, 3, 6\]: dimension 2 must be 7, as in the other inputs"):
        header.check({"a": np.zeros((2, 7)), "b": np.zeros((2, 3, 6))})
