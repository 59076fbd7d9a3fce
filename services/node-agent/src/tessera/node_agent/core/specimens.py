"""Specimens: small flat programs between which a node measures transformations, so that what is known of it does not depend on what users
have registered. Two families, with the operations that most registered programs are made of, in several widths and depths.

Always the same for one version of this file: structures are written here, weights drawn by a seed. They can be run, though nobody does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera.domain.artifact import Artifact, Blob
from tessera.domain.ids import Digest
from tessera.domain.signature import Signature, TensorSpec
from tessera.domain.transformation import ATEN
from tessera.policy.transform.structure import Structure, structure_of
from tessera.tensorstore.artifact import digest_of, encode
from tessera.tensorstore.pack import PackWriter

CLASSES = 10
TOKENS, WORDS = 8, 128
PIXELS, CHANNELS = 16, 3

Value = dict[str, int]
"""What a node reads: `{"slot": n}`, known when the program is written out."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """`blobs`: all of its bytes, its artifact among them."""

    artifact: Digest
    graph: Digest
    structure: Structure
    blobs: Mapping[Digest, bytes]


def specimens() -> tuple[Specimen, ...]:
    """About 15 MB. The last of each family has the graph of its first, and other weights."""
    found = [
        _specimen(program, seed)
        for seed, program in enumerate(
            (
                _convolutions(16, 4, 3), _convolutions(16, 8, 3), _convolutions(32, 4, 3),
                _convolutions(32, 6, 5), _convolutions(128, 4, 3), _convolutions(16, 4, 3),
                _encoder(32, 2), _encoder(32, 4), _encoder(64, 2),
                _encoder(64, 3), _encoder(256, 2), _encoder(32, 2),
            )
        )
    ]  # fmt: skip
    return tuple(found)


class _Program:
    """A flat program being written (docs/adr/0003): inputs have the first slots, then tensors, then nodes."""

    def __init__(self, name: str, datatype: str, shape: Sequence[int]) -> None:
        self.input = TensorSpec(name, datatype, (-1, *shape))
        self.entry: Value = {"slot": 0}
        self.tensors: list[tuple[tuple[int, ...], Value]] = []
        self.nodes: list[tuple[str, list[Any], Value]] = []

    def tensor(self, *shape: int) -> Value:
        self.tensors.append((shape, {}))
        return self.tensors[-1][1]

    def node(self, operator: str, *arguments: Any) -> Value:
        self.nodes.append((f"aten.{operator}", list(arguments), {}))
        return self.nodes[-1][2]

    def linear(self, value: Value, wide: int, to: int) -> Value:
        return self.node("linear.default", value, self.tensor(to, wide), self.tensor(to))

    def norm(self, value: Value, width: int) -> Value:
        return self.node("layer_norm.default", value, [width], self.tensor(width), self.tensor(width), 1e-5)

    def graph(self) -> bytes:
        for slot, value in enumerate([*(value for _, value in self.tensors), *(value for _, _, value in self.nodes)], start=1):
            value["slot"] = slot
        program = {
            "format": 1,
            "dialect": ATEN,
            "slots": 1 + len(self.tensors) + len(self.nodes),
            "inputs": [{"name": self.input.name, "slot": 0}],
            "tensors": [
                {"name": name, "slot": at, "dtype": "FP32", "shape": list(shape)} for at, (name, shape) in enumerate(self.named, 1)
            ],
            "nodes": [[operator, arguments, {}, value["slot"]] for operator, arguments, value in self.nodes],
            "outputs": [{"name": "y", "slot": self.nodes[-1][2]["slot"]}],
        }
        return json.dumps(program, sort_keys=True, separators=(",", ":")).encode()

    @property
    def named(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        return ((f"t{number}", shape) for number, (shape, _) in enumerate(self.tensors))


def _convolutions(width: int, depth: int, kernel: int) -> _Program:
    """A residual network of images."""
    program = _Program("image", "FP32", (CHANNELS, PIXELS, PIXELS))

    def convolution(value: Value, channels: int, size: int) -> Value:
        weights = program.tensor(width, channels, size, size), program.tensor(width)
        return program.node("conv2d.default", value, *weights, [1, 1], [size // 2, size // 2], [1, 1], 1)

    value = convolution(program.entry, CHANNELS, 3)
    for _ in range(depth):
        inner = convolution(value, width, kernel)
        inner = program.node("batch_norm.default", inner, *(program.tensor(width) for _ in range(4)), False, 0.1, 1e-5, False)
        value = program.node("add.Tensor", value, program.node("relu.default", inner))
    value = program.node("adaptive_avg_pool2d.default", program.node("max_pool2d.default", value, [2, 2], [2, 2]), [1, 1])
    program.linear(program.node("flatten.using_ints", value, 1), width, CLASSES)
    return program


def _encoder(width: int, depth: int, heads: int = 4) -> _Program:
    """A transformer's encoder of token numbers."""
    program = _Program("tokens", "INT64", (TOKENS,))
    value = program.node("embedding.default", program.tensor(WORDS, width), program.entry)
    for _ in range(depth):
        inner = program.norm(value, width)
        parts = [program.node("view.default", program.linear(inner, width, width), [-1, TOKENS, heads, width // heads]) for _ in range(3)]
        turned = [program.node("transpose.int", part, 1, 2) for part in parts]
        inner = program.node("transpose.int", program.node("scaled_dot_product_attention.default", *turned), 1, 2)
        inner = program.linear(program.node("reshape.default", inner, [-1, TOKENS, width]), width, width)
        value = program.node("add.Tensor", value, inner)
        inner = program.node("gelu.default", program.linear(program.norm(value, width), width, 4 * width))
        value = program.node("add.Tensor", value, program.linear(inner, 4 * width, width))
    program.linear(program.node("mean.dim", program.norm(value, width), [1]), width, CLASSES)
    return program


def _specimen(program: _Program, seed: int) -> Specimen:
    draw, writer, graph = np.random.default_rng(seed), PackWriter(), program.graph()
    blobs = {digest_of(graph): graph}
    for name, shape in program.named:
        # Between 0 and 1, since there are variances among them.
        data = draw.random(shape, dtype=np.float32).tobytes()
        ref = writer.add(name, "FP32", shape, data)
        if ref.pack_offset is None:
            blobs[ref.digest] = data
    refs, packed = writer.finish()
    pack = None
    if packed is not None:
        pack = Blob(digest_of(packed), len(packed))
        blobs[pack.digest] = bytes(packed)
    signature = Signature((program.input,), (TensorSpec("y", "FP32", (-1, CLASSES)),))
    artifact = Artifact(ATEN, "fp32", ATEN, Blob(digest_of(graph), len(graph)), pack, refs, signature, None, 1)
    data = encode(artifact)
    blobs[digest_of(data)] = data
    return Specimen(digest_of(data), digest_of(graph), structure_of(graph), blobs)
