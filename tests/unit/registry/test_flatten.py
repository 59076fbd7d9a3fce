"""The flat program: what it says, that it answers as the module does, and what it refuses by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim

from tessera.domain.errors import Unsupported
from tessera.registry.importer.agreement import cases, check, flat_runner
from tessera.registry.importer.export import Exported, export
from tessera.registry.importer.loaded import Axis, InputSpec, Loaded

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch, of itself

SPEC = InputSpec("x", torch.float32, (Axis.BATCH, 3, 8, 8))


class Flat(torch.nn.Module):
    """Runs a function as a module with a convolution and a scale of its own."""

    def __init__(self, body: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.scale = torch.nn.Parameter(torch.rand(4, 1, 1))
        self.body = body

    def forward(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.body(self, x[0])
        return found if isinstance(found, tuple) else (found,)


def made(body: Callable[[Any, torch.Tensor], Any], tmp_path: Path, spec: InputSpec = SPEC) -> tuple[Exported, dict[str, Any]]:
    module = Flat(body).eval().requires_grad_(False)

    def agree(exported: Exported) -> None:
        names = [output.name for output in exported.signature.outputs]
        check("the flat program", flat_runner(exported, tmp_path), cases(exported.loaded), names)

    found = export(Loaded(module, (spec,), ()), agree)
    return found, json.loads(found.flat.graph)


def operators(program: dict[str, Any]) -> list[str]:
    return [node[0] for node in program["nodes"]]


def test_slots_are_written_once_and_in_order(tmp_path: Path) -> None:
    exported, program = made(lambda m, x: (m.conv(x) * m.scale).mean((2, 3)), tmp_path)
    written = [i["slot"] for i in program["inputs"]] + [t["slot"] for t in program["tensors"]] + [n[3] for n in program["nodes"]]
    assert written == list(range(program["slots"]))
    assert [t["name"] for t in program["tensors"]] == ["conv.weight", "conv.bias", "scale"] or len(program["tensors"]) == 3
    assert exported.signature.inputs[0].shape == (-1, 3, 8, 8)
    assert exported.signature.outputs[0].shape == (-1, 4)
    assert exported.signature.batched


def test_same_structure_gives_the_same_bytes_and_other_weights_do_not_matter(tmp_path: Path) -> None:
    first, _ = made(lambda m, x: torch.relu(m.conv(x)), tmp_path)

    def other(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(m.conv(x))

    module = Flat(other).eval().requires_grad_(False)
    module.conv.weight.mul_(3)
    second = export(Loaded(module, (SPEC,), ()), lambda _: None)
    assert first.flat.graph == second.flat.graph


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: torch.relu_(m.conv(x)),
        lambda m, x: torch.nn.functional.hardtanh_(m.conv(x)).add_(1.0).mul_(m.scale),
        lambda m, x: torch.nn.functional.silu(m.conv(x), inplace=True).flatten(1),
        lambda m, x: torch.nn.functional.dropout(m.conv(x), 0.5, training=False),
    ],
)
def test_harmless_in_place_operator_becomes_its_twin(tmp_path: Path, body: Callable[[Any, torch.Tensor], Any]) -> None:
    _, program = made(body, tmp_path)
    assert not [name for name in operators(program) if name.split(".")[1].endswith("_") or "dropout" in name]


def through_a_view(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    y.view(-1).relu_()  # y changes too
    return y * 2


def into_a_copy_of_the_input(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    z = y.clone()
    z[:, 0] = 0
    return y + z


def read_again(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = m.conv(x)
    z = y.relu_()
    return z + 1, y + 2  # y is z


@pytest.mark.parametrize("body", [through_a_view, into_a_copy_of_the_input, read_again])
def test_in_place_operator_that_others_see_is_functionalised(tmp_path: Path, body: Callable[[Any, torch.Tensor], Any]) -> None:
    _, program = made(body, tmp_path)  # agreement with eager is what matters
    assert not [name for name in operators(program) if name.split(".")[1].endswith("_")]


def test_no_grad_region_is_flattened(tmp_path: Path) -> None:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            y = m.conv(x)
        return y + 1

    _, program = made(body, tmp_path)
    assert operators(program)[-1] == "aten.add.Tensor"


def test_infinities_and_sizes_are_written(tmp_path: Path) -> None:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.conv(x)
        masked = torch.where(y > 0, y, torch.full_like(y, float("-inf")))
        return torch.softmax(masked.reshape(x.shape[0] * 4, -1), -1).reshape(x.shape[0], -1)

    exported, program = made(body, tmp_path)
    text = exported.flat.graph.decode()
    assert '{"float":"-inf"}' in text
    assert "aten.sym_size.int" in operators(program)


def test_constant_tensor_is_a_slot(tmp_path: Path) -> None:
    exported, _ = made(lambda m, x: m.conv(x) + torch.tensor([[[1.0]], [[2.0]], [[3.0]], [[4.0]]]), tmp_path)
    assert len(exported.flat.tensors) == 3


def test_dead_code_and_unread_weights_are_left_out(tmp_path: Path) -> None:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        (x * m.scale[:3]).sum()
        return m.conv(x)

    exported, program = made(body, tmp_path)
    assert operators(program) == ["aten.conv2d.default"]
    assert {name for name, _ in exported.flat.tensors} == {"conv.weight", "conv.bias"}


def test_model_that_fixes_the_batch_is_exported_with_fixed_shapes(tmp_path: Path) -> None:
    def body(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.conv(x).mean((1, 2, 3))
        return y.reshape(1) if y.shape[0] == 1 else y.reshape(2)

    exported, _ = made(body, tmp_path)
    assert not exported.signature.batched
    assert exported.signature.inputs[0].shape[0] == 1
    assert "exported with fixed shapes" in exported.loaded.notes[0]


@pytest.mark.parametrize(
    ("body", "batched"),
    [
        (lambda m, x: torch.softmax(m.conv(x).flatten(1), 1), True),
        (lambda m, x: m.conv(x) - m.conv(x).mean(0), False),
        (lambda m, x: m.conv(x).flatten(1) @ m.conv(x).flatten(1).T, False),
    ],
)
def test_model_whose_rows_change_one_another_is_not_batched(
    tmp_path: Path, body: Callable[[Any, torch.Tensor], Any], batched: bool
) -> None:
    exported, _ = made(body, tmp_path)
    assert exported.signature.inputs[0].shape[0] == -1
    assert exported.signature.batched is batched


@torch.library.custom_op("registrytest::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda m, x: twice(m.conv(x)), "operator registrytest::twice: the flat program knows no operators of namespace 'registrytest'"),
        (lambda m, x: m.conv(x) + torch.rand(4, 8, 8), "operator aten.rand: it draws random numbers"),
        (lambda m, x: torch.nn.functional.dropout(m.conv(x), 0.5, training=True), "aten.dropout in training mode: call eval()"),
        (
            lambda m, x: torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (m.conv(x),)),
            "operator cond: the flat program has no control flow; compute both ways and select with torch.where",
        ),
    ],
)
def test_operator_that_is_lacking_is_named_with_what_would_work(
    tmp_path: Path, body: Callable[[Any, torch.Tensor], Any], words: str
) -> None:
    with pytest.raises(Unsupported) as refused:
        made(body, tmp_path)
    assert words in str(refused.value)


def test_buffer_that_changes_when_it_runs_is_refused(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm2d(3).train()
    program = torch.export.export(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: Dim("batch")},), strict=False)
    with pytest.raises(Unsupported, match=r"call eval\(\) before exporting"):
        export(Loaded(module, (SPEC,), (), program=program), lambda _: None)
