"""What a compiled program is asked with is checked before it runs; where it cannot be built, that is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tessera.domain.errors import DataCorrupted, InvalidInput, Unsupported
from tessera.domain.ids import BuildClass
from tessera.runtime.backends.aoti.package import Constant, Header, pack, unpack
from tessera.runtime.recipes import check_here, source_of
from tessera.runtime.recipes.lengths import tied

HEADER = Header(
    "2.13.0",
    {"w0": Constant("head.weight", "FP32", (3, 4))},
    ("ids", "mask", "image"),
    ("y",),
    (("s0", "s1"), ("s0", "s1"), ("s0", 3)),
    {"s1": 512},
)


def test_a_graph_comes_back_as_it_was_packed() -> None:
    header, package = unpack(pack(HEADER, b"zip"))
    assert (header, bytes(package)) == (HEADER, b"zip")


@pytest.mark.parametrize(
    "graph", [b"", b"\x00", b"\xff\xff\xff\xff{}", b"\x02\x00\x00\x00{}", pack(HEADER, b"").replace(b'"format":1', b'"format":2')]
)
def test_what_is_no_graph_is_refused(graph: bytes) -> None:
    with pytest.raises(DataCorrupted, match="graph: "):
        unpack(graph)


@pytest.mark.parametrize("shapes", [((1, 1), (1, 1), (1, 3)), ((7, 512), (7, 512), (7, 3))])
def test_shapes_that_the_program_knows(shapes: tuple[tuple[int, ...], ...]) -> None:
    HEADER.check(shapes)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((2, 5), (2, 4), (2, 3)), r"inputs mask shape \[2, 4\]: dimension 1 must be 5 as dimension 1 of ids"),
        (((2, 5), (3, 5), (2, 3)), r"inputs mask shape \[3, 5\]: dimension 0 must be 2 as dimension 0 of ids"),
        (((2, 5), (2, 5), (2, 4)), r"inputs image shape \[2, 4\]: dimension 1 must be 3"),
        (((2, 513), (2, 513), (2, 3)), r"inputs ids shape \[2, 513\]: dimension 1 must be from 1 to 512"),
        (((0, 5), (0, 5), (0, 3)), r"inputs ids shape \[0, 5\]: dimension 0 must be from 1"),
        (((2, 5, 1), (2, 5), (2, 3)), r"inputs ids shape \[2, 5, 1\]: must have 2 dimensions"),
    ],
)
def test_shapes_that_it_does_not_know(shapes: tuple[tuple[int, ...], ...], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        HEADER.check(shapes)


CLASS = BuildClass("x86_64-avx2-ort1")


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Unsupported, match=r"aoti-fp32 needs a C\+\+ compiler on the node: g\+\+, clang\+\+, c\+\+ is not on PATH"):
        check_here("aoti-fp32", CLASS)
    check_here("ort-fp32", CLASS)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(Unsupported, match="/no/such/compiler is not on PATH"):
        check_here("aoti-fp32", CLASS)


def test_it_is_made_of_the_flat_program() -> None:
    assert (source_of("aoti-fp32"), source_of("ort-int8")) == ("aten", "onnx")


def asked(rule: Callable[[dict[str, int]], bool]) -> Callable[[Mapping[str, int]], bool]:
    def takes(lengths: Mapping[str, int]) -> bool:
        assert min(lengths.values()) >= 2  # one is broadcast to any length: nothing would follow from it
        return rule(dict(lengths))

    return takes


@pytest.mark.parametrize(
    ("lengths", "rule", "wanted"),
    [
        ({}, lambda of: True, {}),
        ({"b": 2, "s": 16}, lambda of: True, {"b": "b", "s": "s"}),
        ({"b": 2, "s": 16, "c": 2, "t": 16}, lambda of: (of["b"], of["s"]) == (of["c"], of["t"]), {"b": "b", "s": "s", "c": "b", "t": "s"}),
        ({"h": 16, "w": 16, "m": 16}, lambda of: of["w"] == of["m"], {"h": "h", "w": "w", "m": "w"}),
        ({"s": 16, "t": 16, "u": 16}, lambda of: of["s"] == of["t"] == of["u"], {"s": "s", "t": "s", "u": "s"}),
        ({"s": 16, "t": 16}, lambda of: of["t"] >= of["s"], {"s": "s", "t": "s"}),  # sliced to the other's: equal is safe
    ],
)
def test_lengths_that_have_to_be_equal_get_one_name(lengths: dict[str, int], rule: Any, wanted: dict[str, str]) -> None:
    assert tied(lengths, asked(rule)) == wanted


@pytest.mark.parametrize("rule", [lambda of: of["s"] == 16, lambda of: of["s"] == 8 * of["b"] or (of["b"], of["s"]) == (3, 15)])
def test_other_lengths_than_free_or_equal_ones_are_refused(rule: Any) -> None:
    with pytest.raises(Unsupported, match=r"the flat program takes no other length [bs] than (2|16)"):
        tied({"b": 2, "s": 16}, asked(rule))
